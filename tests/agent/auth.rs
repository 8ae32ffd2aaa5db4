//! Each way to log in.

use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    pod::Pod,
    support::{
        SOON,
        bao::{Bao, REVOCATION, Shape},
        until,
    },
};

/// The configuration with another way to log in.
fn configure(pod: &Pod, auth: &str, more: &str) {
    let folder = format!(
        "vaultAddress: {}\nauth: {auth}\n{more}folders:\n- path: {}\n  objects: [{}]\n",
        pod.proxy.url(),
        pod.path("secrets").display(),
        pod.database()
    );
    pod.replace("config/agent.yaml", &folder);
}

async fn works(pod: &Pod) -> (String, String) {
    let mut agent = pod.agent(&[]);
    pod.ready(&mut agent).await;
    let (user, password) = pod.credential();
    pod.ground
        .postgres
        .login(&user, &password)
        .await
        .unwrap_or_else(|error| panic!("{error}: {}", agent.log()));
    agent.signal(Signal::SIGTERM);
    assert!(agent.wait(SOON).await.success(), "{}", agent.log());
    (user, password)
}

#[tokio::test]
async fn with_jwt() {
    let pod = Pod::new("a-jwt").await;
    let bao = &pod.ground.bao;
    bao.enable_jwt_auth("jwt-a", &pod.ground.cluster).await;
    let role = json!({
        "role_type": "jwt", "user_claim": "sub", "bound_audiences": ["vault"], "token_policies": ["pod-a-jwt"],
    });
    bao.write("auth/jwt-a/role/app", role).await;
    let auth = format!("{{method: jwt, tokenPath: {}}}", pod.path("token/vault").display());
    configure(&pod, &auth, "roleName: app\nvaultAuthMountPath: jwt-a\n");
    let (user, password) = works(&pod).await;
    until("it is given back", REVOCATION, async || {
        pod.ground.postgres.login(&user, &password).await.is_err().then_some(())
    })
    .await;
}

async fn approle(pod: &Pod) -> String {
    let bao = &pod.ground.bao;
    let mount = format!("approle-{}", pod.name);
    bao.write(&format!("sys/auth/{mount}"), json!({"type": "approle"})).await;
    let role = json!({"token_policies": [format!("pod-{}", pod.name)], "secret_id_num_uses": 0});
    bao.write(&format!("auth/{mount}/role/app"), role).await;
    let id = bao.read(&format!("auth/{mount}/role/app/role-id")).await;
    pod.replace("token/role-id", id["data"]["role_id"].as_str().unwrap());
    mount
}

#[tokio::test]
async fn with_an_approle() {
    let pod = Pod::new("a-role").await;
    let mount = approle(&pod).await;
    let secret = pod.ground.bao.write(&format!("auth/{mount}/role/app/secret-id"), json!({})).await;
    pod.replace("token/secret-id", secret["data"]["secret_id"].as_str().unwrap());
    let auth = format!(
        "{{method: approle, roleIdPath: {}, secretIdPath: {}}}",
        pod.path("token/role-id").display(),
        pod.path("token/secret-id").display()
    );
    configure(&pod, &auth, &format!("vaultAuthMountPath: {mount}\n"));
    works(&pod).await;

    pod.replace("token/secret-id", "00000000-0000-0000-0000-000000000000");
    let mut once = pod.agent(&["--once"]);
    assert_eq!(once.wait(SOON).await.code(), Some(1));
    assert!(once.log().contains("does not accept the role id or the secret id"), "{}", once.log());
}

#[tokio::test]
async fn with_an_approle_whose_secret_id_is_wrapped() {
    let pod = Pod::new("a-wrap").await;
    let mount = approle(&pod).await;
    let path = format!("auth/{mount}/role/app/secret-id");
    let wrapped = async || {
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
        let request = client
            .post(format!("{}/v1/{path}", pod.ground.bao.url()))
            .header("x-vault-token", "root")
            .header("x-vault-wrap-ttl", "60s");
        let answer: Value =
            serde_json::from_slice(&request.send().await.unwrap().bytes().await.unwrap()).unwrap();
        answer["wrap_info"]["token"].as_str().unwrap().to_owned()
    };
    let first = wrapped().await;
    // In an emptyDir: a wrapped secret id is removed once read, as Vault Agent does.
    let file = pod.path("state/secret-id");
    let place = |token: String| {
        let file = file.clone();
        pod.within(move || {
            std::fs::write(&file, token).unwrap();
            std::os::unix::fs::chown(&file, Some(crate::pod::USER), None).unwrap();
        });
    };
    place(first.clone());
    let auth = |made_at: &str| {
        format!(
            "{{method: approle, roleIdPath: {}, secretIdPath: {}, secretIdWrappingPath: {made_at}}}",
            pod.path("token/role-id").display(),
            file.display()
        )
    };
    configure(&pod, &auth(&path), &format!("vaultAuthMountPath: {mount}\n"));
    let mut agent = pod.agent(&[]);
    pod.ready(&mut agent).await;
    let before = pod.credential();
    assert!(pod.read("state/secret-id").is_err(), "read, and removed: {}", agent.log());
    // The secret id is not needed again: it is on record.
    agent.kill();
    pod.proxy.forget();
    let mut agent = pod.agent(&[]);
    pod.ready(&mut agent).await;
    assert_eq!((pod.credential(), pod.proxy.count()), (before, 0));
    agent.signal(Signal::SIGTERM);
    assert!(agent.wait(SOON).await.success());

    place(first);
    let mut once = pod.agent(&["--once"]);
    assert_eq!(once.wait(SOON).await.code(), Some(1));
    assert!(once.log().contains("cannot unwrap the secret id"), "{}", once.log());
    place(wrapped().await);
    configure(&pod, &auth("auth/other/role/app/secret-id"), &format!("vaultAuthMountPath: {mount}\n"));
    let mut once = pod.agent(&["--once"]);
    assert_eq!(once.wait(SOON).await.code(), Some(1));
    assert!(once.log().contains("was not made at auth/other/role/app/secret-id"), "{}", once.log());
}

#[tokio::test]
async fn with_a_token_that_is_not_ours_to_revoke() {
    let pod = Pod::new("a-token").await;
    let make = async || {
        let body = json!({"policies": ["pod-a-token"], "ttl": "1h", "no_parent": true});
        let made = pod.ground.bao.write("auth/token/create", body).await;
        made["auth"]["client_token"].as_str().unwrap().to_owned()
    };
    let first = make().await;
    pod.replace("token/vault-token", &first);
    configure(
        &pod,
        &format!("{{method: token, tokenPath: {}}}", pod.path("token/vault-token").display()),
        "",
    );
    let alive = async |token: &str| {
        let answer = pod.ground.bao.with_token(token).call(Method::GET, "auth/token/lookup-self", None).await;
        answer.status == 200
    };
    let mut agent = pod.agent(&[]);
    pod.ready(&mut agent).await;
    let before = pod.credential();
    pod.ground.postgres.login(&before.0, &before.1).await.unwrap();

    // Another token in the file is another session, and what the first one made is left to it.
    let second = make().await;
    pod.replace("token/vault-token", &second);
    until("the credential is of the new token", SOON, async || (pod.credential() != before).then_some(()))
        .await;
    pod.ground.bao.with_token(&first).write("auth/token/revoke-self", json!({})).await;
    let (user, password) = pod.credential();
    pod.ground.postgres.login(&user, &password).await.unwrap();
    agent.signal(Signal::SIGTERM);
    assert!(agent.wait(SOON).await.success(), "{}", agent.log());
    assert!(alive(&second).await, "{}", agent.log());

    pod.replace("token/vault-token", "s.nobody-made-this");
    let mut once = pod.agent(&["--once"]);
    assert_eq!(once.wait(SOON).await.code(), Some(1));
    assert!(once.log().contains("the token is unknown to the server"), "{}", once.log());
}

#[tokio::test]
async fn with_a_client_certificate() {
    let pod = Pod::new("a-cert").await;
    let bao = Bao::start(Shape::DevTls).await;
    bao.put_policy("app", "path \"secret/data/app\" { capabilities = [\"read\"] }").await;
    bao.put_secret("app", json!({"value": "by certificate"})).await;
    bao.write("sys/auth/cert", json!({"type": "cert"})).await;
    let ca = rcgen::CertifiedIssuer::self_signed(
        {
            let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
            parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            parameters
        },
        rcgen::KeyPair::generate().unwrap(),
    )
    .unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::new(vec!["app.prod".to_owned()]).unwrap();
    parameters.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = parameters.signed_by(&key, &ca).unwrap();
    bao.write("auth/cert/certs/app", json!({"certificate": ca.pem(), "token_policies": ["app"]})).await;
    pod.replace("token/tls.crt", &certificate.pem());
    pod.replace("token/tls.key", &key.serialize_pem());
    pod.replace("token/ca.crt", &std::fs::read_to_string(bao.ca_path()).unwrap());
    let path = |name: &str| pod.path(&format!("token/{name}")).display().to_string();
    let text = format!(
        "vaultAddress: {}\nroleName: app\nvaultCACertPath: {}\nvaultTLSClientCertPath: {}\nvaultTLSClientKeyPath: \
         {}\nauth: {{method: cert}}\nfolders:\n- path: {}\n  objects: [{{objectName: a, secretPath: secret/data/app, \
         secretKey: value}}]\n",
        bao.url(),
        path("ca.crt"),
        path("tls.crt"),
        path("tls.key"),
        pod.path("secrets").display()
    );
    pod.replace("config/agent.yaml", &text);
    let mut agent = pod.agent(&[]);
    pod.ready(&mut agent).await;
    assert_eq!(pod.read("secrets/a").unwrap(), "by certificate");
    agent.signal(Signal::SIGTERM);
    assert!(agent.wait(SOON).await.success(), "{}", agent.log());
}
