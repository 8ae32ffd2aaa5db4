//! How drivers up to 1.5.6 reach a provider: they dial the raw path, so that grpc-go sends it as
//! `:authority`, which is no authority at all.
//!
//! No HTTP/2 library of Rust will say such a thing. So the client says a name of the same shape, in which
//! every `/` is a `-`, and this stream changes it on the wire: both characters have six bits in the Huffman
//! code of HPACK, so that no length changes and the dynamic table stays true.

use std::{
    io,
    path::Path,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
};

/// What the HTTP/2 client is told to send in place of `socket`'s path.
pub fn placeholder(socket: &Path) -> String {
    socket.to_string_lossy().replace('/', "-")
}

/// A connection on which the placeholder leaves as the socket's path.
#[derive(Debug)]
pub struct SocketPathAuthority {
    stream: UnixStream,
    said: Vec<u8>,
    meant: Vec<u8>,
}

impl SocketPathAuthority {
    /// Wraps a connection to `socket`.
    pub fn new(stream: UnixStream, socket: &Path) -> Self {
        let said = huffman(&placeholder(socket));
        let meant = huffman(&socket.to_string_lossy());
        assert_eq!(said.len(), meant.len(), "both spellings have one length");
        Self { stream, said, meant }
    }
}

impl AsyncWrite for SocketPathAuthority {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        // h2 writes a HEADERS frame in one piece; a frame that fits no buffer would be seen as a call
        // that the provider does not refuse.
        let Some(at) = buf.windows(self.said.len()).position(|window| window == self.said) else {
            return Pin::new(&mut self.stream).poll_write(cx, buf);
        };
        let mut changed = buf.to_vec();
        changed[at..at + self.said.len()].copy_from_slice(&self.meant);
        Pin::new(&mut self.stream).poll_write(cx, &changed)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl AsyncRead for SocketPathAuthority {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

fn huffman(text: &str) -> Vec<u8> {
    let mut coded = Vec::new();
    httlib_huffman::encode(text.as_bytes(), &mut coded).expect("every byte has a code");
    coded
}
