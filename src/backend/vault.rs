//! Vault and OpenBao over HTTP.
