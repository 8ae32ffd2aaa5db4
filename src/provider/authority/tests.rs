#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use tokio::io::AsyncReadExt;

use super::*;

const SOCKET: &[u8] = b"/var/run/secrets-store-csi-providers/vault.sock";
const VALID: &[u8] = b"-var-run-secrets-store-csi-providers-vault.sock";

fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
    frame.extend_from_slice(payload);
    frame
}

fn text(value: &[u8], huffman: bool) -> Vec<u8> {
    let mut encoded = Vec::new();
    if huffman {
        httlib_huffman::encode(value, &mut encoded).unwrap();
    } else {
        encoded.extend_from_slice(value);
    }
    let flag = if huffman { 0x80 } else { 0 };
    let mut out = Vec::new();
    if encoded.len() < 127 {
        out.push(flag | u8::try_from(encoded.len()).unwrap());
    } else {
        let rest = encoded.len() - 127;
        out.extend([flag | 127, u8::try_from(rest % 128).unwrap() | 0x80, u8::try_from(rest / 128).unwrap()]);
    }
    out.extend(encoded);
    out
}

/// The header block of a gRPC call as grpc-go orders it, with the authority's field as given.
fn block(authority: &[u8]) -> Vec<u8> {
    let mut block = vec![0x83, 0x86];
    block.push(0x44);
    block.extend(text(b"/v1alpha1.CSIDriverProvider/Mount", true));
    block.extend_from_slice(authority);
    block.extend([0x40]);
    block.extend(text(b"te", true));
    block.extend(text(b"trailers", false));
    block
}

fn field(start: &[u8], value: &[u8], huffman: bool) -> Vec<u8> {
    [start.to_vec(), text(value, huffman)].concat()
}

fn stream(frames: &[Vec<u8>]) -> Vec<u8> {
    [PREFACE.to_vec(), frame(4, 0, &[]), frames.concat(), frame(0, 1, b"\0\0\0\0\x05/data")].concat()
}

/// Feeds `input` in chunks that end at `cuts`, then the end.
fn through(input: &[u8], cuts: &[usize]) -> Vec<u8> {
    let (mut rewriter, mut out, mut from) = (Rewriter::new(), Vec::new(), 0);
    for &cut in cuts.iter().filter(|cut| **cut < input.len()) {
        rewriter.feed(&input[from.min(cut)..cut], &mut out);
        from = from.max(cut);
        assert!(rewriter.held.len() <= MAX_HELD);
    }
    rewriter.feed(&input[from..], &mut out);
    rewriter.give_up(&mut out);
    out
}

/// Frames of one header block: plain, padded, with priority, both, and cut into CONTINUATIONs.
fn framings(block: &[u8]) -> Vec<Vec<Vec<u8>>> {
    let priority = [0, 0, 0, 0, 16];
    let padded = |inner: &[u8]| [&[3], inner, &[0, 0, 0]].concat();
    let (one, two) = block.split_at(block.len() / 2);
    let (two, three) = two.split_at(1);
    vec![
        vec![frame(HEADERS, 4, block)],
        vec![frame(HEADERS, 4 | 8, &padded(block))],
        vec![frame(HEADERS, 4 | 0x20, &[&priority, block].concat())],
        vec![frame(HEADERS, 4 | 8 | 0x20, &padded(&[&priority, block].concat()))],
        vec![
            frame(HEADERS, 8, &padded(one)),
            frame(CONTINUATION, 0, two),
            frame(CONTINUATION, 0, &[]),
            frame(CONTINUATION, 4, three),
        ],
    ]
}

#[test]
fn every_spelling_of_a_socket_path_becomes_valid_and_keeps_its_length() {
    let escaped = b"%2Fvar%2Frun%2Fvault.sock".as_slice();
    let named = [vec![0x00], text(b":authority", true)].concat();
    let raw_name = [vec![0x10], text(b":authority", false)].concat();
    let mut rewritten = 0;
    // Literal with incremental indexing, without, and never indexed; the name by index and spelled out.
    for start in [vec![0x41], vec![0x01], vec![0x11], named, raw_name] {
        for huffman in [true, false] {
            for (value, valid) in [
                (SOCKET, VALID),
                (escaped, b"-2Fvar-2Frun-2Fvault.sock"),
                (b"/tmp/a_b~.sock", b"-tmp-a_b~.sock"),
            ] {
                assert!(Authority::try_from(value).is_err(), "h2 would take this one: nothing is tested");
                let before = framings(&block(&field(&start, value, huffman)));
                let after = framings(&block(&field(&start, valid, huffman)));
                for (before, after) in before.iter().zip(&after) {
                    assert_eq!(through(&stream(before), &[]), stream(after));
                    rewritten += 1;
                }
            }
        }
    }
    assert_eq!(rewritten, 5 * 2 * 3 * 5);
}

#[test]
fn what_is_no_socket_path_passes_untouched() {
    let other_field = field(&[0x0f, 0x2f], SOCKET, true);
    let long = [b"/".as_slice(), &[b'a'; MAX_LITERAL]].concat();
    let untouched = [
        stream(&[frame(HEADERS, 4, &block(&field(&[0x41], b"localhost", true)))]),
        stream(&[frame(HEADERS, 4, &block(&field(&[0x41], b"", false)))]),
        stream(&[frame(HEADERS, 4, &block(&other_field))]),
        // Still no authority with its slashes replaced.
        stream(&[frame(HEADERS, 4, &block(&field(&[0x41], b"/with space", true)))]),
        stream(&[frame(HEADERS, 4, &block(&field(&[0x41], &long, false)))]),
        // Not HTTP/2 at all.
        b"GET / HTTP/1.1\r\nhost: /var/run/x.sock\r\n\r\n".to_vec(),
        // Padding longer than the frame; another frame within a block; a literal past the block's end.
        stream(&[frame(HEADERS, 4 | 8, &[200, 0x41])]),
        stream(&[frame(HEADERS, 0, &[0x41]), frame(HEADERS, 4, &text(SOCKET, false))]),
        stream(&[frame(HEADERS, 4, &[0x41, 0x7f, 0xff, 0xff, 0xff, 0xff, 0x7f])]),
        // More than is ever held.
        stream(&(0..5).map(|n| frame(if n == 0 { 1 } else { 9 }, 0, &[0x88; 16_000])).collect::<Vec<_>>()),
        // The end in the midst of a block.
        [PREFACE.to_vec(), frame(HEADERS, 0, &field(&[0x41], SOCKET, true))].concat(),
    ];
    for input in untouched {
        assert_eq!(through(&input, &[]), input);
    }
}

#[tokio::test]
async fn reads_the_same_through_the_wrapper_and_ends_with_its_source() {
    let before = framings(&block(&field(&[0x41], SOCKET, true)));
    let after = framings(&block(&field(&[0x41], VALID, true)));
    for (enabled, expected) in [(true, &after), (false, &before)] {
        for (before, expected) in before.iter().zip(expected) {
            let (input, mut read) = (stream(before), Vec::new());
            AuthorityShim::new(input.as_slice(), enabled).read_to_end(&mut read).await.unwrap();
            assert_eq!(read, stream(expected));
        }
    }
}

proptest! {
    #[test]
    fn chunking_changes_nothing(cuts in prop::collection::vec(0_usize..700, 0..40), framing in 0_usize..5) {
        let mut cuts = cuts;
        cuts.sort_unstable();
        let before = framings(&block(&field(&[0x41], SOCKET, true))).swap_remove(framing);
        let after = framings(&block(&field(&[0x41], VALID, true))).swap_remove(framing);
        prop_assert_eq!(through(&stream(&before), &cuts), stream(&after));
    }

    #[test]
    fn any_bytes_keep_their_number_and_never_panic(
        payload in prop::collection::vec(any::<u8>(), 0..300),
        flags in any::<u8>(),
        cut in 0_usize..300,
    ) {
        let input = [PREFACE.to_vec(), frame(HEADERS, flags, &payload), payload].concat();
        prop_assert_eq!(through(&input, &[cut]).len(), input.len());
    }
}
