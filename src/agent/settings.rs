//! Flags, environment and files to what the agent runs with.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    ffi::OsString,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow, bail};
use tracing::warn;

use super::credential;
use crate::{
    cli::AgentArgs,
    config,
    convert::{Translation, injector, vault_agent},
    provider::token,
    spec::{
        PodIdentity,
        agent::{AgentFile, AuthMethod, Surroundings, parse},
        parameters::Defaults,
    },
};

/// Largest configuration or template file.
const MAX_FILE: u64 = 4 << 20;

/// Where the configuration is.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// Ours: a file, or a folder of files that are one together.
    Own(PathBuf),
    /// Vault Agent's, in HCL or JSON.
    VaultAgent(PathBuf),
    /// The pod's annotations for Vault Agent's injector, as the downward API writes them.
    Annotations(PathBuf),
}

/// Names and contents of files.
type Texts = Vec<(String, String)>;

/// What the agent runs with.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) source: Source,
    pub(super) defaults: Defaults,
    pub(super) environment: PodIdentity,
    pub(super) file: AgentFile,
    pub(super) pod: PodIdentity,
    /// The configuration as it was read, by file name.
    pub(super) texts: Texts,
    /// Files whose change changes what is asked for.
    pub(super) inputs: BTreeSet<PathBuf>,
    pub(super) once: bool,
    pub(super) command: Option<Vec<OsString>>,
    pub(super) state_dir: PathBuf,
    pub(super) health_addr: Option<String>,
    pub(super) revoke: bool,
    pub(super) allow_commands: bool,
    pub(super) disk_backed: bool,
    pub(super) print_config: bool,
    pub(super) sandbox: config::Sandbox,
}

/// A configuration, read.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) file: AgentFile,
    pub(super) pod: PodIdentity,
    pub(super) texts: Texts,
    pub(super) inputs: BTreeSet<PathBuf>,
}

impl Settings {
    /// Reads flags, environment and files.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(super) fn resolve(
        arguments: AgentArgs,
        environment: impl Fn(&str) -> Option<String>,
    ) -> anyhow::Result<Self> {
        let source = Source::of(&arguments)?;
        let mut defaults = config::defaults(&arguments.vault.into(), &["VAULT_", "BAO_"], &environment)?;
        let variable = |names: &[&str]| names.iter().find_map(|name| environment(name)).unwrap_or_default();
        defaults.node = variable(&["LEASEHOLD_NODE_NAME", "NODE_NAME"]);
        // From the downward API, where the login's token does not tell.
        let from_environment = PodIdentity {
            namespace: variable(&["POD_NAMESPACE", "NAMESPACE"]),
            name: variable(&["POD_NAME", "HOSTNAME"]),
            uid: variable(&["POD_UID"]),
            service_account: variable(&["POD_SERVICE_ACCOUNT", "SERVICE_ACCOUNT"]),
        };
        let Loaded { file, pod, texts, inputs } = source.load(&defaults, &from_environment)?;
        let command = arguments.exec.then_some(arguments.command).filter(|command| !command.is_empty());
        let written = || {
            let exec = file.exec.as_ref().filter(|exec| !exec.command.is_empty())?;
            Some(exec.command.iter().map(OsString::from).collect::<Vec<_>>())
        };
        let command = command.or_else(written);
        let once = arguments.once || file.exit_after_render;
        if arguments.exec && command.is_none() {
            bail!("--exec needs a command: leasehold agent --config FILE --exec -- PROGRAM ARGUMENTS");
        }
        if file.folders.is_empty() && file.exec.is_none() && command.is_none() {
            bail!("the configuration has neither \"folders\" nor \"exec\": there is nothing to do");
        }
        if once && command.is_some() {
            bail!("--once ends after the first render, and --exec runs as long as its process: choose one");
        }
        let state_dir = arguments
            .state_dir
            .or_else(|| file.state_dir.clone())
            .unwrap_or_else(|| config::STATE_DIR.into());
        if !state_dir.is_absolute() {
            bail!("--state-dir {}: must be an absolute path", state_dir.display());
        }
        Ok(Self {
            once,
            command,
            health_addr: arguments.health_addr.or_else(|| file.health_address.clone()),
            revoke: arguments.revoke_on_shutdown.or(file.revoke_on_shutdown).unwrap_or(true),
            allow_commands: arguments.allow_commands,
            disk_backed: arguments.disk_backed,
            print_config: arguments.print_config,
            sandbox: arguments.sandbox.into(),
            environment: from_environment,
            source,
            defaults,
            file,
            pod,
            texts,
            inputs,
            state_dir,
        })
    }
}

impl Source {
    /// Reads the configuration and what it names.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub(super) fn load(&self, defaults: &Defaults, environment: &PodIdentity) -> anyhow::Result<Loaded> {
        let (texts, mut inputs) = self.texts()?;
        let templates = RefCell::new(BTreeSet::new());
        let read = |path: &str| {
            templates.borrow_mut().insert(PathBuf::from(path));
            text(Path::new(path)).map_err(|error| format!("{error:#}"))
        };
        let understand = |pod: &PodIdentity| {
            let around = Surroundings { defaults, pod, read: &read };
            parse(&texts, &around).map_err(|problems| {
                let problems: Vec<String> =
                    problems.iter().map(|problem| format!("{}: {problem}", self.name())).collect();
                anyhow!("{}", problems.join("\n"))
            })
        };
        let mut file = understand(environment)?;
        let mut pod = environment.clone();
        // The login's token knows the pod best.
        if matches!(file.auth.method, AuthMethod::Kubernetes | AuthMethod::Jwt)
            && let Some(claimed) =
                credential::line("the token", &file.auth.token).ok().and_then(|jwt| token::subject(&jwt))
        {
            pod = PodIdentity {
                name: Some(claimed.name).filter(|name| !name.is_empty()).unwrap_or(pod.name),
                ..claimed
            };
            file = understand(&pod)?;
        }
        inputs.extend(templates.into_inner());
        Ok(Loaded { file, pod, texts, inputs })
    }

    /// For messages.
    fn name(&self) -> String {
        match self {
            Self::Own(path) => path.display().to_string(),
            // Lines are those of what --print-config shows.
            Self::VaultAgent(path) | Self::Annotations(path) => format!("{}, translated", path.display()),
        }
    }

    /// What the command line names.
    ///
    /// # Errors
    /// When it names nothing.
    pub(super) fn of(arguments: &AgentArgs) -> anyhow::Result<Self> {
        let own = arguments.config.clone().map(Self::Own);
        let others = [
            arguments.from_vault_agent.clone().map(Self::VaultAgent),
            arguments.annotations.clone().map(Self::Annotations),
        ];
        own.into_iter()
            .chain(others.into_iter().flatten())
            .next()
            .context("say which file to read: --config, --from-vault-agent or --annotations")
    }

    /// What somebody else's file is in our words, with what is lost; `None` of our own.
    ///
    /// # Errors
    /// When it cannot be read at all.
    pub(super) fn translated(&self) -> anyhow::Result<Option<Translation>> {
        let (Self::Own(path) | Self::VaultAgent(path) | Self::Annotations(path)) = self;
        let read = || text(path).with_context(|| format!("cannot read {}", path.display()));
        let translation = match self {
            Self::Own(_) => return Ok(None),
            Self::VaultAgent(_) => vault_agent::translate(&read()?),
            Self::Annotations(_) => injector::translate(&read()?),
        };
        translation.map(Some).with_context(|| path.display().to_string())
    }

    fn texts(&self) -> anyhow::Result<(Texts, BTreeSet<PathBuf>)> {
        if let Some(translation) = self.translated()? {
            let (Self::Own(path) | Self::VaultAgent(path) | Self::Annotations(path)) = self;
            let translation = translation.complete().with_context(|| path.display().to_string())?;
            for note in &translation.notes {
                warn!(line = note.line, "{note}");
            }
            return Ok((
                vec![(path.display().to_string(), translation.yaml)],
                BTreeSet::from([path.clone()]),
            ));
        }
        let (Self::Own(path) | Self::VaultAgent(path) | Self::Annotations(path)) = self;
        if !path.is_dir() {
            let content = text(path).with_context(|| format!("cannot read {}", path.display()))?;
            return Ok((vec![(path.display().to_string(), content)], BTreeSet::from([path.clone()])));
        }
        // A ConfigMap's own links begin with a dot.
        let mut files: Vec<PathBuf> = fs::read_dir(path)
            .with_context(|| format!("cannot read the folder {}", path.display()))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|file| {
                let hidden = file.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
                let kind = file.extension().and_then(|kind| kind.to_str());
                !hidden && file.is_file() && matches!(kind, Some("yaml" | "yml" | "json"))
            })
            .collect();
        files.sort();
        if files.is_empty() {
            bail!("the folder {} has no file *.yaml, *.yml or *.json", path.display());
        }
        let mut texts = Vec::new();
        for file in &files {
            let content = text(file).with_context(|| format!("cannot read {}", file.display()))?;
            let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            texts.push((name, content));
        }
        Ok((texts, files.into_iter().chain([path.clone()]).collect()))
    }
}

fn text(path: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    let file = fs::File::open(path)?;
    if !file.metadata()?.is_file() {
        bail!("is no file");
    }
    file.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        bail!("has more than {MAX_FILE} bytes");
    }
    Ok(text)
}
