//! `auto_auth`: how to log in.

use super::{Translator, each, labelled};
use crate::{
    convert::{emit::Map, notes::plain},
    spec::yaml::Node,
};

/// Where a pod's own token is, which Vault Agent takes where nothing else is said.
const POD_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

impl Translator {
    pub(super) fn auth(&mut self, auto_auth: Option<&Node>, vault: Option<&Node>) {
        let namespace = vault.and_then(|vault| self.text(vault, "namespace"));
        let client =
            |this: &mut Self, field| vault.and_then(|vault| this.text(vault, field)).map(|(text, _)| text);
        let (mut cert, mut key) = (client(self, "client_cert"), client(self, "client_key"));
        let method = auto_auth.and_then(|auto_auth| {
            self.section(auto_auth, "auto_auth.");
            auto_auth.get("method").map(each).and_then(<[Node]>::first)
        });
        let Some((kind, method)) = method.and_then(labelled) else {
            let line = auto_auth.map_or(1, |auto_auth| auto_auth.line);
            self.notes.refused(line, "auto_auth: names no method to log in with");
            return;
        };
        self.section(method, "method.");
        let own = self.text(method, "namespace");
        match (&namespace, &own) {
            (Some((for_secrets, _)), Some((for_login, line))) if for_secrets != for_login => {
                let message =
                    "method.namespace: is another than vault.namespace, and leasehold logs in where it reads";
                self.notes.refused(*line, message);
            }
            _ => {}
        }
        self.top.put_some("vaultNamespace", namespace.or(own).map(|(text, _)| text));
        if let Some((path, _)) = self.text(method, "mount_path") {
            self.top.put("vaultAuthMountPath", path.trim_matches('/').trim_start_matches("auth/"));
        }
        let empty = Node { line: method.line, kind: crate::spec::yaml::Kind::Map(Vec::new()) };
        let config = method.get("config").map(each).and_then(<[Node]>::first).unwrap_or(&empty);
        let mut auth = Map::default();
        let known = ["kubernetes", "jwt", "approle", "token_file", "cert"];
        if known.contains(&kind) {
            self.section(config, &format!("{kind}."));
        }
        // Who mounts the folders mounts a token too, where the agent looks for one.
        let pod_token = self.bases.is_empty().then(|| POD_TOKEN.to_owned());
        let mut get = |field: &str| self.text(config, field).map(|(text, _)| text);
        let (mut role, mut ca) = (None, None);
        match kind {
            "kubernetes" => {
                role = get("role");
                auth.put("method", "kubernetes").put_some("tokenPath", get("token_path").or(pod_token));
            }
            "jwt" => {
                role = get("role");
                auth.put("method", "jwt").put_some("tokenPath", get("path"));
            }
            "approle" => {
                auth.put("method", "approle").put_some("roleIdPath", get("role_id_file_path"));
                auth.put_some("secretIdPath", get("secret_id_file_path"));
                auth.put_some("secretIdWrappingPath", get("secret_id_response_wrapping_path"));
                let remove = get("remove_secret_id_file_after_reading").is_none_or(|text| text != "false");
                if auth.get("secretIdPath").is_some() {
                    auth.put("removeSecretIdFileAfterReading", remove);
                }
            }
            "token_file" => {
                auth.put("method", "token").put_some("tokenPath", get("token_file_path"));
            }
            "cert" => {
                role = get("name");
                cert = get("client_cert").or(cert);
                key = get("client_key").or(key);
                ca = get("ca_cert");
                auth.put("method", "cert");
            }
            other => {
                let message = format!(
                    "auto_auth method {}: is left out; in a pod, log in with its ServiceAccount token (kubernetes or jwt), \
                     or with approle, token_file or cert",
                    plain(other)
                );
                self.notes.refused(method.line, message);
                return;
            }
        }
        self.top.put_some("vaultTLSClientCertPath", cert).put_some("vaultTLSClientKeyPath", key);
        if self.top.get("vaultCACertPath").is_none() {
            self.top.put_some("vaultCACertPath", ca);
        }
        self.top.put_some("roleName", role);
        self.top.put("auth", auth);
    }
}
