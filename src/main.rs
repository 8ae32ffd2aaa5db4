//! The `leasehold` binary: parse, run, exit.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Parser;
use leasehold::{
    app,
    cli::{self, Cli},
    startup,
};

/// Wipes what libraries free: buffers of requests and answers hold tokens and secrets.
#[global_allocator]
static ALLOCATOR: zeroizing_alloc::ZeroAlloc<std::alloc::System> =
    zeroizing_alloc::ZeroAlloc(std::alloc::System);

fn main() -> ExitCode {
    let cli = match Cli::try_parse_from(cli::normalise(std::env::args_os())) {
        Ok(cli) => cli,
        Err(error) => {
            // Help goes to standard output and is no failure.
            let failed = error.use_stderr();
            return match error.print() {
                Ok(()) if !failed => ExitCode::SUCCESS,
                _ => ExitCode::from(startup::BAD_CONFIG),
            };
        }
    };
    // Fails only when a provider is there already, which is as good.
    let _installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    app::run(cli).unwrap_or_else(|error| {
        let text: Vec<_> = error.chain().map(ToString::to_string).collect();
        // With standard error closed there is nobody left to tell.
        let _closed = writeln!(io::stderr(), "leasehold: {}", text.join(": "));
        ExitCode::FAILURE
    })
}
