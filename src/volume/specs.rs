//! Equal wishes are kept once: the replicas of a Deployment ask for the same.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
};

use crate::{lifecycle::volume::Volume, spec::VolumeSpec};

/// What is asked for on this node.
#[derive(Debug, Default)]
pub(super) struct Specs {
    /// By the SHA-256 of its JSON.
    known: BTreeMap<[u8; 32], Weak<VolumeSpec>>,
    /// So many may be known before those that nobody asks for any more are looked for.
    full: usize,
}

/// Below this it is not worth looking.
const FEW: usize = 64;

impl Specs {
    /// The one that is kept of all that equal `spec`.
    pub(super) fn share(&mut self, spec: Arc<VolumeSpec>) -> Arc<VolumeSpec> {
        let Ok(text) = serde_json::to_vec(spec.as_ref()) else { return spec };
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &text);
        let Ok(digest) = <[u8; 32]>::try_from(digest.as_ref()) else { return spec };
        if let Some(known) = self.known.get(&digest).and_then(Weak::upgrade) {
            return known;
        }
        if self.known.len() >= self.full.max(FEW) {
            self.known.retain(|_, spec| spec.strong_count() > 0);
            self.full = self.known.len() * 2;
        }
        self.known.insert(digest, Arc::downgrade(&spec));
        spec
    }

    /// Shares what a restored volume asks for.
    pub(super) fn share_all(&mut self, volume: &mut Volume) {
        if let Some(installed) = &mut volume.installed {
            installed.spec = self.share(Arc::clone(&installed.spec));
        }
        if let Some(attempt) = &mut volume.attempt {
            attempt.spec = self.share(Arc::clone(&attempt.spec));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        spec::{ApiPath, Connection, FileMode, LoginMethod, LoginSpec, TlsSpec},
        template::PodContext,
    };

    fn spec(role: usize) -> Arc<VolumeSpec> {
        let tls = TlsSpec::default();
        Arc::new(VolumeSpec {
            connection: Connection { address: "https://vault:8200".into(), namespace: String::new(), tls },
            login: LoginSpec {
                method: LoginMethod::ServiceAccount,
                mount: ApiPath::parse("kubernetes").expect("a path"),
                role: format!("role-{role}"),
                audience: "vault".into(),
            },
            objects: Vec::new(),
            default_mode: FileMode::DEFAULT,
            pod: PodContext::default(),
        })
    }

    #[test]
    fn equal_specs_are_one_and_forgotten_with_the_last() {
        let mut specs = Specs::default();
        let first = specs.share(spec(0));
        assert!(Arc::ptr_eq(&first, &specs.share(spec(0))), "of the next replica");
        assert!(!Arc::ptr_eq(&first, &specs.share(spec(1))), "of another class");
        for role in 2..10_000 {
            drop(specs.share(spec(role)));
        }
        assert!(specs.known.len() <= FEW, "{}", specs.known.len());
        assert!(Arc::ptr_eq(&first, &specs.share(spec(0))), "still asked for");
    }
}
