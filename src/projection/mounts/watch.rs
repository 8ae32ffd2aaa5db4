//! Waking when the mount table changes.

use std::{
    fs::File,
    io::{self, Read, Seek},
};

use tokio::io::{Interest, unix::AsyncFd};

use super::{MOUNTINFO, MountTable};

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

    /// Waits for the next change and returns the table as it is then. Changes in quick succession may come
    /// as one. Cancel-safe: a change seen by a dropped future is reported again only if it was not read.
    ///
    /// # Errors
    /// When polling or reading fails; both mean that `/proc` is broken.
    pub async fn changed(&mut self) -> io::Result<MountTable> {
        // Cleared before reading: a change that comes while we read raises the flag again, and the worst
        // is one reading too many. The other order could swallow it.
        self.file.ready(Interest::PRIORITY).await?.clear_ready();
        let mut text = Vec::new();
        let mut file = self.file.get_ref();
        file.rewind()?;
        file.read_to_end(&mut text)?;
        Ok(MountTable::parse(&text))
    }
}
