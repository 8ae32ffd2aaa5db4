#!/bin/sh
# Configures OpenBao for the example: run it where `bao` reaches the server with a token that may do this.
#   kubectl -n openbao exec -i openbao-0 -- sh -s < examples/bookstore/configure.sh
# Vault takes the same with `vault` for `bao`.
set -eu

bao auth enable kubernetes 2>/dev/null || true
# OpenBao's own ServiceAccount asks the API server who a pod is; its chart gives it the right to.
bao write auth/kubernetes/config kubernetes_host=https://kubernetes.default.svc

bao secrets enable -path=secret -version=2 kv 2>/dev/null || true
bao kv put -mount=secret bookstore/web greeting="hello from OpenBao"

bao secrets enable database 2>/dev/null || true
if ! bao read database/config/bookstore >/dev/null 2>&1; then
  bao write database/config/bookstore \
    plugin_name=postgresql-database-plugin \
    connection_url='postgresql://{{username}}:{{password}}@postgres.bookstore.svc:5432/bookstore?sslmode=disable' \
    allowed_roles=bookstore username=root password=first-and-soon-replaced
  # From now on nobody but OpenBao knows the password.
  bao write -f database/rotate-root/bookstore
fi
bao write database/roles/bookstore db_name=bookstore default_ttl=5m max_ttl=30m \
  creation_statements="CREATE ROLE \"{{name}}\" WITH LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'; GRANT pg_read_all_data TO \"{{name}}\";"

bao policy write bookstore - <<'POLICY'
path "secret/data/bookstore/web" { capabilities = ["read"] }
path "database/creds/bookstore" { capabilities = ["read"] }
path "sys/leases/revoke" { capabilities = ["update"] }
POLICY
# token_max_ttl bounds what a node that vanishes can leave behind.
bao write auth/kubernetes/role/bookstore \
  bound_service_account_names=web bound_service_account_namespaces=bookstore \
  audience=vault token_policies=bookstore token_ttl=20m token_max_ttl=2h
