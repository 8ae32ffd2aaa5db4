//! One server with one database and one cluster for all tests of a process.

use std::sync::{Arc, Weak};

use tokio::sync::Mutex;

use super::{
    bao::{Bao, Shape},
    cluster::Cluster,
    postgres::Postgres,
};

/// What all tests of a process share: they use roles, paths and auth mounts of their own.
pub struct Ground {
    pub bao: Bao,
    pub postgres: Postgres,
    pub cluster: Arc<Cluster>,
}

impl Ground {
    /// The process's ground; it ends with the last test that stands on it.
    pub async fn get() -> Arc<Self> {
        static GROUND: Mutex<Weak<Ground>> = Mutex::const_new(Weak::new());
        let mut known = GROUND.lock().await;
        if let Some(ground) = known.upgrade() {
            return ground;
        }
        let (bao, postgres) = tokio::join!(Bao::start(Shape::Dev), Postgres::start());
        postgres.configure(&bao, "ground", "1h", "1h").await;
        let ground = Arc::new(Self { bao, postgres, cluster: Arc::new(Cluster::start()) });
        *known = Arc::downgrade(&ground);
        ground
    }
}
