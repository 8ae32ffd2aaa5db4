//! Waking when the mount table changes.

use std::{fs::File, io};

use tokio::io::{Interest, unix::AsyncFd};

use super::MOUNTINFO;

/// Wakes on every mount and unmount in this process's namespace, the host's included where propagation
/// brings them here. Holds a descriptor of `/proc` only, never one in a volume.
#[derive(Debug)]
pub struct MountWatch {
    file: AsyncFd<File>,
}

impl MountWatch {
    /// Starts watching: any change after this call is reported by [`changed`](Self::changed), so read the
    /// table after it, not before. Needs a tokio runtime.
    ///
    /// # Errors
    /// When `/proc` is not readable, or the descriptor cannot be polled.
    #[expect(
        deprecated,
        reason = "the unsafe successor asks the caller to promise that the descriptor stays open and the same: \
                  a File that is only ever borrowed does"
    )]
    pub fn open() -> io::Result<Self> {
        // The kernel compares with the table's event number as of open(2): nothing between open and the
        // first poll is lost.
        let file = AsyncFd::with_interest(File::open(MOUNTINFO)?, Interest::PRIORITY)?;
        Ok(Self { file })
    }

    /// Waits for the next change; what it is says a [`MountTable`](super::MountTable) read afterwards. The table itself is not read here: a
    /// node that starts a thousand pods changes it thousands of times. Changes in quick succession may come as one.
    /// Cancel-safe.
    ///
    /// # Errors
    /// When polling fails: `/proc` is broken.
    pub async fn changed(&mut self) -> io::Result<()> {
        self.file.ready(Interest::PRIORITY).await?.clear_ready();
        Ok(())
    }
}
