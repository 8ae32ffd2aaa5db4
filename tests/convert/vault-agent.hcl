pid_file = "/tmp/pid"

vault {
  address         = "https://vault.vault.svc:8200"
  ca_cert         = "/etc/tls/ca.crt"
  tls_skip_verify = false
  retry {
    num_retries = 5
  }
}

auto_auth {
  method "kubernetes" {
    mount_path = "auth/kubernetes"
    config = {
      role       = "web"
      token_path = "/var/run/secrets/vault/token"
    }
  }
}

template_config {
  static_secret_render_interval = "2m"
  exit_on_retry_failure         = true
}

template {
  destination          = "/vault/secrets/config.sh"
  perms                = "0600"
  user                 = "10001"
  error_on_missing_key = true
  contents             = <<-EOT
    {{- with secret "secret/data/web/config" -}}
    export API_KEY="${PREFIX:-}{{ .Data.data.api_key }}"
    {{- end }}
    EOT
  exec {
    command = ["pkill", "-HUP", "web"]
  }
}

template {
  destination     = "/vault/secrets/tls/web.pem"
  source          = "/etc/templates/web.pem.tmpl"
  left_delimiter  = "<<"
  right_delimiter = ">>"
}

template {
  destination = "/etc/web/app.json"
  contents    = "{{ with secret \"secret/data/web/config\" }}{{ .Data.data | toJSON }}{{ end }}"
  command     = "wget -qO- http://127.0.0.1:8080/-/reload"
}

env_template "DATABASE_URL" {
  contents             = "postgres://{{ with secret \"database/creds/web\" }}{{ .Data.username }}{{ end }}@db"
  error_on_missing_key = true
}

exec {
  command                   = ["./app", "--flag"]
  restart_on_secret_changes = "always"
  restart_stop_signal       = "SIGTERM"
}
