"""The published Pod Security Standard *restricted* (and *baseline*, which it contains), as of Kubernetes 1.37:
https://kubernetes.io/docs/concepts/security/pod-security-standards/. Written from that page, rule by rule."""

VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected",
    "secret",
}
SELINUX_TYPES = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
}
SECCOMP = {"RuntimeDefault", "Localhost"}
PROC_MOUNTS = {None, "Default"}


def containers(spec):
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        yield from spec.get(kind) or []


def restricted(spec):
    """Yields what a pod's spec breaks."""
    pod = spec.get("securityContext") or {}
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield f"{field} is set"
    for volume in spec.get("volumes") or []:
        for kind in set(volume) - {"name"}:
            if kind not in VOLUMES:
                yield f"volume {volume['name']} is a {kind}"
    for sysctl in pod.get("sysctls") or []:
        if sysctl["name"] not in SYSCTLS:
            yield f"sysctl {sysctl['name']}"
    if (pod.get("windowsOptions") or {}).get("hostProcess"):
        yield "hostProcess"
    if pod.get("runAsUser") == 0:
        yield "the pod runs as uid 0"
    yield from selinux("the pod", pod)
    profile = (pod.get("seccompProfile") or {}).get("type")
    if profile is not None and profile not in SECCOMP:
        yield f"the pod's seccomp profile is {profile}"
    for container in containers(spec):
        yield from restricted_container(container, pod)


def restricted_container(container, pod):
    name, own = f"container {container['name']}", container.get("securityContext") or {}
    if own.get("privileged"):
        yield f"{name} is privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield f"{name} does not forbid privilege escalation"
    if not own.get("runAsNonRoot", pod.get("runAsNonRoot")):
        yield f"{name} may run as root"
    if own.get("runAsUser") == 0:
        yield f"{name} runs as uid 0"
    if (own.get("seccompProfile") or pod.get("seccompProfile") or {}).get("type") not in SECCOMP:
        yield f"{name} has no seccomp profile"
    capabilities = own.get("capabilities") or {}
    if "ALL" not in (capabilities.get("drop") or []):
        yield f"{name} does not drop ALL"
    if set(capabilities.get("add") or []) - {"NET_BIND_SERVICE"}:
        yield f"{name} adds capabilities"
    if any(port.get("hostPort") for port in container.get("ports") or []):
        yield f"{name} has a host port"
    if own.get("procMount") not in PROC_MOUNTS:
        yield f"{name} unmasks /proc"
    if (own.get("windowsOptions") or {}).get("hostProcess"):
        yield f"{name} is a hostProcess"
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        for action in ("httpGet", "tcpSocket"):
            if ((container.get(probe) or {}).get(action) or {}).get("host"):
                yield f"{name} probes another host"
    yield from selinux(name, own)


def selinux(name, context):
    options = context.get("seLinuxOptions") or {}
    if (options.get("type") or "") not in SELINUX_TYPES or options.get("user") or options.get("role"):
        yield f"{name} sets SELinux options"


# Each breaks one rule of a pod that meets all of them: the checks above are checked with them.
BREAKAGES = {
    "host network": lambda s: s.update(hostNetwork=True),
    "host pid": lambda s: s.update(hostPID=True),
    "host ipc": lambda s: s.update(hostIPC=True),
    "hostPath": lambda s: s.setdefault("volumes", []).append({"name": "x", "hostPath": {"path": "/"}}),
    "sysctl": lambda s: s["securityContext"].update(sysctls=[{"name": "kernel.msgmax", "value": "1"}]),
    "pod as root": lambda s: s["securityContext"].update(runAsUser=0),
    "pod may be root": lambda s: s["securityContext"].update(runAsNonRoot=False),
    "unconfined": lambda s: s["securityContext"].update(seccompProfile={"type": "Unconfined"}),
    "no seccomp": lambda s: s["securityContext"].pop("seccompProfile"),
    "spc_t": lambda s: s["securityContext"].update(seLinuxOptions={"type": "spc_t"}),
    "privileged": lambda s: own(s).update(privileged=True),
    "escalation": lambda s: own(s).pop("allowPrivilegeEscalation"),
    "root": lambda s: own(s).update(runAsUser=0),
    "caps": lambda s: own(s).pop("capabilities"),
    "added caps": lambda s: own(s)["capabilities"].update(add=["CHOWN"]),
    "host port": lambda s: s["containers"][0].update(ports=[{"containerPort": 1, "hostPort": 1}]),
    "proc": lambda s: own(s).update(procMount="Unmasked"),
    "init container": lambda s: s.update(initContainers=[{"name": "i", "image": "i"}]),
    "probe of a host": lambda s: s["containers"][0].update(livenessProbe={"httpGet": {"host": "a", "port": 1}}),
}


def own(spec):
    return spec["containers"][0]["securityContext"]
