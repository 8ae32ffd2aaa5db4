//! How the agent logs in.

use std::path::{Path, PathBuf};

use super::{
    Reader,
    fields::{Fields, problem},
};
use crate::spec::{
    LoginMethod, values,
    yaml::{Kind, Node},
};

const AUTH: [&str; 7] = [
    "method",
    "tokenPath",
    "roleIdPath",
    "secretIdPath",
    "secretIdResponseWrapped",
    "secretIdWrappingPath",
    "removeSecretIdFileAfterReading",
];

/// Where a pod's manifest usually projects its token for Vault.
pub const TOKEN_PATH: &str = "/var/run/secrets/vault/token";

/// A method as the file names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum AuthMethod {
    Kubernetes,
    Jwt,
    Token,
    AppRole,
    Cert,
}

impl AuthMethod {
    /// As the file spells it, and as the server names the mount of its kind by default.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kubernetes => "kubernetes",
            Self::Jwt => "jwt",
            Self::Token => "token",
            Self::AppRole => "approle",
            Self::Cert => "cert",
        }
    }

    pub(super) const fn login(self) -> LoginMethod {
        match self {
            Self::Kubernetes | Self::Jwt => LoginMethod::ServiceAccount,
            Self::Token => LoginMethod::Token,
            Self::AppRole => LoginMethod::AppRole,
            Self::Cert => LoginMethod::Certificate,
        }
    }
}

/// Where the login's credential is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Auth {
    /// How to log in.
    pub method: AuthMethod,
    /// The projected token, or the file with a Vault token.
    pub token: PathBuf,
    /// With AppRole.
    pub role_id: Option<PathBuf>,
    /// With AppRole, where the role wants one.
    pub secret_id: Option<PathBuf>,
    /// Whether the secret id's file holds a wrapping token.
    pub wrapped: bool,
    /// Path that the wrapping token must have been made at: anything else was swapped on its way.
    pub wrapping_path: Option<String>,
    /// Whether the secret id's file is removed once read, as Vault Agent does.
    pub remove_secret_id: bool,
}

impl Auth {
    /// Files that a login reads.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        [Some(&self.token), self.role_id.as_ref(), self.secret_id.as_ref()]
            .into_iter()
            .flatten()
            .map(PathBuf::as_path)
    }
}

impl Reader<'_> {
    pub(super) fn auth(&mut self, node: Option<&Node>) -> Option<Auth> {
        let empty = Node { line: 1, kind: Kind::Map(Vec::new()) };
        let node = node.unwrap_or(&empty);
        let mut fields = Fields::new(node, &AUTH, &mut self.problems);
        let method = match fields.text("method").as_deref() {
            None | Some("kubernetes") => AuthMethod::Kubernetes,
            Some("jwt") => AuthMethod::Jwt,
            Some("token" | "token_file") => AuthMethod::Token,
            Some("approle") => AuthMethod::AppRole,
            Some("cert") => AuthMethod::Cert,
            Some(other) => {
                let near = values::nearest(other, ["kubernetes", "jwt", "token", "approle", "cert"]);
                let hint = near.map(|near| format!(", did you mean {near}?")).unwrap_or_default();
                let reason = format!(
                    "auth.method {} is none of kubernetes, jwt, token, approle, cert{hint}",
                    values::quote(other)
                );
                self.problems.push(problem(node, reason));
                return None;
            }
        };
        let token = fields.path("tokenPath");
        let role_id = fields.path("roleIdPath");
        let secret_id = fields.path("secretIdPath");
        let wrapping_path = fields.text("secretIdWrappingPath");
        let wrapped = fields.boolean("secretIdResponseWrapped").unwrap_or(wrapping_path.is_some());
        let remove_secret_id = fields.boolean("removeSecretIdFileAfterReading");
        if method == AuthMethod::AppRole && role_id.is_none() {
            self.problems
                .push(problem(node, "auth.roleIdPath is missing: approle needs the role's id".to_owned()));
        }
        if method == AuthMethod::Token && token.is_none() {
            self.problems
                .push(problem(node, "auth.tokenPath is missing: the file with the Vault token".to_owned()));
        }
        if method != AuthMethod::AppRole && (role_id.is_some() || secret_id.is_some()) {
            let reason =
                format!("auth.roleIdPath and auth.secretIdPath are of approle, not of {}", method.as_str());
            self.problems.push(problem(node, reason));
        }
        Some(Auth {
            method,
            token: token.unwrap_or_else(|| TOKEN_PATH.into()),
            role_id,
            secret_id,
            wrapped,
            wrapping_path,
            // A wrapped one is good for once and of no use to anybody afterwards; others may be mounted anew.
            remove_secret_id: remove_secret_id.unwrap_or(wrapped),
        })
    }
}
