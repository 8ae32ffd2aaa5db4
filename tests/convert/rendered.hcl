vault {
  address = "URL"
}

auto_auth {
  method "kubernetes" {
    mount_path = "auth/kubernetes"
    config = {
      role       = "app"
      token_path = "DIR/token"
    }
  }
}

template {
  destination          = "DIR/out/config.sh"
  perms                = "0600"
  error_on_missing_key = true
  contents             = <<-EOT
    {{- with secret "secret/data/app/web" -}}
    export API_KEY="${PREFIX:-}{{ .Data.data.api_key }}"
    {{- end }}
    EOT
}

template {
  destination     = "DIR/out/port"
  source          = "DIR/source.tmpl"
  left_delimiter  = "<<"
  right_delimiter = ">>"
}

template {
  destination = "DIR/out/all.json"
  contents    = "{{ with secret \"secret/data/app/web\" }}{{ .Data.data | toJSON }}{{ end }}"
}

template {
  destination = "DIR/out/sub/lines"
  contents    = "{{ with secret \"secret/data/app/web\" }}{{ range $k, $v := .Data.data }}{{ $k }}={{ $v }}\n{{ end }}{{ end }}"
}
