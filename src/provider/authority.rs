//! Lets drivers before 1.6.0 talk to us.
//!
//! Those dial the bare socket path, so grpc-go sends the path as `:authority`
//! (`/var/run/…/vault.sock`, or `%2Fvar%2Frun…` from newer grpc-go), which h2 refuses with PROTOCOL_ERROR
//! (kubernetes-sigs/secrets-store-csi-driver#1862, hyperium/h2#487). This wrapper rewrites such a literal to
//! a valid authority before h2 sees it.
//!
//! `/`, `%` and `-` have Huffman codes of the same length, six bits, so that replacing the first two by the
//! last changes neither the encoded nor the decoded length: every frame keeps its size, and the peer's and
//! h2's dynamic tables evict the same entries at the same time. Later requests that refer to the table entry
//! then refer to the valid value.
//!
//! What cannot be read here (no HTTP/2, a malformed or oversized header block) passes untouched: h2 judges.

use std::{
    io,
    ops::Range,
    pin::Pin,
    task::{Context, Poll, ready},
};

use httlib_huffman::DecoderSpeed;
use hyper::http::uri::Authority;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What every HTTP/2 client sends first (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const FLAG_END_HEADERS: u8 = 0x4;
const FLAG_PADDED: u8 = 0x8;
const FLAG_PRIORITY: u8 = 0x20;

/// Largest header block held back while it is read, frame headers included. h2 accepts 16 KiB of headers by
/// default; the driver sends some 300 bytes.
const MAX_HELD: usize = 64 * 1024;
/// Largest literal looked into. A socket path has at most 107 bytes.
const MAX_LITERAL: usize = 1024;
/// How much is read at once.
const CHUNK: usize = 8 * 1024;

/// A connection whose incoming `:authority` literals are made valid. No `Debug`: its buffers hold tokens.
pub struct AuthorityShim<S> {
    inner: S,
    rewriter: Rewriter,
    chunk: Box<[u8]>,
    ready: Vec<u8>,
    given: usize,
    /// Told of the first literal that is rewritten.
    told: Option<Box<dyn FnOnce() + Send>>,
}

impl<S> AuthorityShim<S> {
    /// Wraps `inner`; when not `enabled`, bytes pass untouched and nothing is buffered.
    pub fn new(inner: S, enabled: bool) -> Self {
        let (rewriter, chunk) =
            if enabled { (Rewriter::new(), vec![0; CHUNK]) } else { (Rewriter::pass_through(), Vec::new()) };
        Self { inner, rewriter, chunk: chunk.into_boxed_slice(), ready: Vec::new(), given: 0, told: None }
    }

    /// Calls `told` when the first literal is rewritten: this is a driver before 1.6.0.
    #[must_use]
    pub fn telling(mut self, told: impl FnOnce() + Send + 'static) -> Self {
        self.told = Some(Box::new(told));
        self
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for AuthorityShim<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if this.given < this.ready.len() {
                let size = buf.remaining().min(this.ready.len() - this.given);
                buf.put_slice(&this.ready[this.given..this.given + size]);
                this.given += size;
                return Poll::Ready(Ok(()));
            }
            this.ready.clear();
            this.given = 0;
            if this.rewriter.passes_through() {
                return Pin::new(&mut this.inner).poll_read(cx, buf);
            }
            let mut chunk = ReadBuf::new(&mut this.chunk);
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut chunk))?;
            if chunk.filled().is_empty() {
                // The end, perhaps in the midst of a block: hand over what is held, then read the end again.
                this.rewriter.give_up(&mut this.ready);
            } else {
                this.rewriter.feed(chunk.filled(), &mut this.ready);
                if this.rewriter.rewrote
                    && let Some(told) = this.told.take()
                {
                    told();
                }
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for AuthorityShim<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

enum State {
    /// This many bytes of the preface have come.
    Preface(usize),
    /// This many bytes of a frame that holds no headers are still to come.
    Payload(usize),
    /// Collecting a frame into `held`, from `start`; `size` is known once its header is complete.
    Frame { start: usize, size: Option<usize> },
    /// Nothing is looked at any more.
    PassThrough,
}

/// The streaming part: finds header blocks in a client's bytes, whatever their chunking, and rewrites them.
struct Rewriter {
    state: State,
    /// Frames of a header block, or the beginning of a frame.
    held: Vec<u8>,
    /// Where in `held` the fragments of the block are.
    fragments: Vec<Range<usize>>,
    /// The stream whose block goes on in a CONTINUATION frame.
    open: Option<[u8; 4]>,
    /// Whether a literal was replaced.
    rewrote: bool,
}

impl Rewriter {
    fn new() -> Self {
        Self { state: State::Preface(0), held: Vec::new(), fragments: Vec::new(), open: None, rewrote: false }
    }

    fn pass_through() -> Self {
        Self { state: State::PassThrough, ..Self::new() }
    }

    fn passes_through(&self) -> bool {
        matches!(self.state, State::PassThrough)
    }

    fn feed(&mut self, mut input: &[u8], out: &mut Vec<u8>) {
        while !input.is_empty() {
            match &mut self.state {
                State::PassThrough => {
                    out.extend_from_slice(input);
                    return;
                }
                State::Preface(seen) => {
                    let size = input.len().min(PREFACE.len() - *seen);
                    if input[..size] != PREFACE[*seen..*seen + size] {
                        self.give_up(out);
                        continue;
                    }
                    *seen += size;
                    if *seen == PREFACE.len() {
                        self.state = State::Frame { start: 0, size: None };
                    }
                    out.extend_from_slice(&input[..size]);
                    input = &input[size..];
                }
                State::Payload(left) => {
                    let size = input.len().min(*left);
                    *left -= size;
                    if *left == 0 {
                        self.state = State::Frame { start: 0, size: None };
                    }
                    out.extend_from_slice(&input[..size]);
                    input = &input[size..];
                }
                State::Frame { start, size } => {
                    let missing = *start + size.unwrap_or(FRAME_HEADER) - self.held.len();
                    let taken = input.len().min(missing);
                    self.held.extend_from_slice(&input[..taken]);
                    input = &input[taken..];
                    if taken == missing {
                        let start = *start;
                        if size.is_none() { self.on_header(start, out) } else { self.on_frame(start, out) }
                    }
                }
            }
        }
    }

    /// Hands over what is held and looks at nothing more.
    fn give_up(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.held);
        self.fragments = Vec::new();
        self.held = Vec::new();
        self.state = State::PassThrough;
    }

    fn on_header(&mut self, start: usize, out: &mut Vec<u8>) {
        let header = &self.held[start..];
        let length = usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
        let (kind, stream) = (header[3], [header[5], header[6], header[7], header[8]]);
        match (self.open, kind) {
            (None, HEADERS) => {}
            (None, _) => {
                out.append(&mut self.held);
                self.state = match length {
                    0 => State::Frame { start: 0, size: None },
                    length => State::Payload(length),
                };
                return;
            }
            (Some(open), CONTINUATION) if open == stream => {}
            (Some(_), _) => return self.give_up(out),
        }
        if self.held.len() + length > MAX_HELD {
            return self.give_up(out);
        }
        self.state = State::Frame { start, size: Some(FRAME_HEADER + length) };
        if length == 0 {
            self.on_frame(start, out);
        }
    }

    fn on_frame(&mut self, start: usize, out: &mut Vec<u8>) {
        let frame = &self.held[start..];
        let flags = frame[4];
        let Some(fragment) = fragment_of(frame) else { return self.give_up(out) };
        self.open = Some([frame[5], frame[6], frame[7], frame[8]]);
        self.fragments.push(start + fragment.start..start + fragment.end);
        if flags & FLAG_END_HEADERS == 0 {
            self.state = State::Frame { start: self.held.len(), size: None };
            return;
        }
        self.rewrite_held();
        out.append(&mut self.held);
        self.fragments.clear();
        self.open = None;
        self.state = State::Frame { start: 0, size: None };
    }

    fn rewrite_held(&mut self) {
        let mut block: Vec<u8> =
            self.fragments.iter().flat_map(|range| &self.held[range.clone()]).copied().collect();
        // A block that turns out to be malformed further on may be half rewritten: h2 refuses it either way.
        let before = block.clone();
        let _malformed = rewrite_block(&mut block);
        self.rewrote |= block != before;
        let mut rest = block.as_slice();
        for range in &self.fragments {
            let (now, later) = rest.split_at(range.len());
            self.held[range.clone()].copy_from_slice(now);
            rest = later;
        }
    }
}

/// Where in a HEADERS or CONTINUATION frame the block fragment is: without padding and priority.
fn fragment_of(frame: &[u8]) -> Option<Range<usize>> {
    let (kind, flags) = (frame[3], frame[4]);
    let (mut start, mut end) = (FRAME_HEADER, frame.len());
    if kind == HEADERS && flags & FLAG_PADDED != 0 {
        end = end.checked_sub(usize::from(*frame.get(start)?))?;
        start += 1;
    }
    if kind == HEADERS && flags & FLAG_PRIORITY != 0 {
        start += 5;
    }
    (start <= end).then_some(start..end)
}

/// Rewrites each `:authority` literal of an HPACK block (RFC 7541, 6) that is a socket path; `None` where the
/// block is malformed. A name given by a dynamic table entry is not followed: encoders name `:authority` by
/// its static index, or spell it out.
fn rewrite_block(block: &mut [u8]) -> Option<()> {
    const STATIC_AUTHORITY: usize = 1;
    let mut at = 0;
    while let Some(&first) = block.get(at) {
        if first & 0x80 != 0 {
            integer(block, &mut at, 7)?;
            continue;
        }
        if first & 0xe0 == 0x20 {
            integer(block, &mut at, 5)?;
            continue;
        }
        let is_authority = match integer(block, &mut at, if first & 0x40 != 0 { 6 } else { 4 })? {
            0 => {
                let name = literal(block, &mut at)?;
                name.decode(block).as_deref() == Some(b":authority")
            }
            index => index == STATIC_AUTHORITY,
        };
        let value = literal(block, &mut at)?;
        if is_authority && let Some(replacement) = value.replacement(block) {
            block[value.range].copy_from_slice(&replacement);
        }
    }
    Some(())
}

struct Literal {
    huffman: bool,
    range: Range<usize>,
}

impl Literal {
    fn decode(&self, block: &[u8]) -> Option<Vec<u8>> {
        let encoded = &block[self.range.clone()];
        if encoded.len() > MAX_LITERAL {
            return None;
        }
        if !self.huffman {
            return Some(encoded.to_vec());
        }
        let mut decoded = Vec::new();
        httlib_huffman::decode(encoded, &mut decoded, DecoderSpeed::FourBits).ok()?;
        Some(decoded)
    }

    /// A valid authority of the same encoded and decoded length, when this is a socket path.
    fn replacement(&self, block: &[u8]) -> Option<Vec<u8>> {
        let valid = valid_equivalent(&self.decode(block)?)?;
        let encoded = if self.huffman {
            let mut encoded = Vec::new();
            httlib_huffman::encode(&valid, &mut encoded).ok()?;
            encoded
        } else {
            valid
        };
        (encoded.len() == self.range.len()).then_some(encoded)
    }
}

fn valid_equivalent(value: &[u8]) -> Option<Vec<u8>> {
    let escaped = value.get(..3).is_some_and(|start| start.eq_ignore_ascii_case(b"%2f"));
    if value.first() != Some(&b'/') && !escaped {
        return None;
    }
    let valid: Vec<u8> =
        value.iter().map(|byte| if matches!(byte, b'/' | b'%') { b'-' } else { *byte }).collect();
    Authority::try_from(valid.as_slice()).ok()?;
    Some(valid)
}

/// An HPACK integer with a prefix of `bits` (RFC 7541, 5.1), at most 2^28.
fn integer(block: &[u8], at: &mut usize, bits: u32) -> Option<usize> {
    let mask = (1_usize << bits) - 1;
    let mut value = usize::from(*block.get(*at)?) & mask;
    *at += 1;
    if value < mask {
        return Some(value);
    }
    for shift in [0, 7, 14, 21] {
        let byte = usize::from(*block.get(*at)?);
        *at += 1;
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn literal(block: &[u8], at: &mut usize) -> Option<Literal> {
    let huffman = block.get(*at)? & 0x80 != 0;
    let length = integer(block, at, 7)?;
    let range = *at..at.checked_add(length)?;
    block.get(range.clone())?;
    *at = range.end;
    Some(Literal { huffman, range })
}

#[cfg(test)]
mod tests;
