//! Replication connections with TLS and a password, on a cluster that takes no others. Needs `openssl`.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use outbox_harness::{cluster::Cluster, eventually, kafka};
use outbox_server::{
    config,
    model::source::Source,
    relay::Relay,
    store::relay::replication::{Error, Session},
};
use sqlx::Executor as _;
use uuid::Uuid;

use crate::support::outbox::{Outbox, PATIENCE, Running, kafka_config};

/// Certificates and access rules, removed when this goes out of scope.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("outboxd-tls-{}", Uuid::now_v7()));
        fs::create_dir(&folder).expect("a folder can be made");
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("the cluster's user can enter");
        let new = Self(folder);
        for authority in ["ca", "other"] {
            new.openssl(&format!(
                "req -x509 -newkey rsa:2048 -nodes -days 2 -keyout {authority}.key -out {authority}.crt -subj /CN={authority}"
            ));
        }
        new.openssl("req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=db.test -addext subjectAltName=DNS:db.test");
        new.openssl("x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -out server.crt -copy_extensions copy");
        let rules = "hostssl all relay 127.0.0.1/32 scram-sha-256\nhost all relay 127.0.0.1/32 reject\n\
                     host all postgres 127.0.0.1/32 trust\n";
        fs::write(new.path("hba.conf"), rules).expect("a file can be written");
        fs::set_permissions(new.path("server.key"), fs::Permissions::from_mode(0o600)).expect("it is private");
        // Called by root, the cluster runs as another user, who must be able to read its key.
        for user in ["postgres", "nobody"] {
            let given = Command::new("chown").arg(user).arg(new.path("server.key")).output().expect("chown can be run");
            if given.status.success() {
                break;
            }
        }
        new
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.join(file)
    }

    fn openssl(&self, arguments: &str) {
        let done = Command::new("openssl").args(arguments.split(' ')).current_dir(&self.0).output();
        let done = done.expect("openssl can be run");
        assert!(done.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&done.stderr));
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{} is left behind: {error}", self.0.display());
        }
    }
}

fn setting(name: &str, path: &Path) -> String {
    format!("{name}={}", path.display())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_streamed_over_tls_with_a_password() {
    let folder = Folder::new();
    let settings = [
        "ssl=on".to_owned(),
        setting("ssl_cert_file", &folder.path("server.crt")),
        setting("ssl_key_file", &folder.path("server.key")),
        setting("hba_file", &folder.path("hba.conf")),
    ];
    let cluster = Cluster::start(&settings.each_ref().map(String::as_str));
    let outbox = Outbox::at(cluster.url.clone(), kafka::fresh_topic("tls", 1).await).await;
    let role = "create role relay superuser login password 'se cret/%'";
    outbox.connect().await.execute(role).await.expect("a role can be made");
    let url = |password: &str, options: &str| {
        let url = cluster.url.replacen("postgres@", &format!("relay:{password}@"), 1);
        format!("{url}?{options}")
    };
    let password = "se%20cret%2F%25";
    let verified = |mode: &str, authority: &str| {
        url(password, &format!("sslmode={mode}&sslrootcert={}", folder.path(&format!("{authority}.crt")).display()))
    };

    let database = config::Database { url: verified("verify-ca", "ca"), ..config::Database::default() };
    let relay = Relay::new(Outbox::relay_config(), &kafka_config(), &database).expect("it can be made");
    let relay = Running::start(relay);
    outbox.switch(Source::Wal).await;
    outbox.emit(500, 5).await;
    outbox.all_settled().await;
    assert_eq!(outbox.assert_all_published_in_order().await, 0);
    // A relay that was held up for longer than its lease streams anew, so that there is none to be seen for a moment.
    let encrypted = "select bool_and(s.ssl) from pg_stat_replication r join pg_stat_ssl s using (pid)";
    let seen = async || {
        let seen = sqlx::query_scalar::<_, Option<bool>>(encrypted).fetch_one(&mut outbox.connect().await).await;
        seen.expect("it can be read")
    };
    assert!(eventually("the log is streamed", PATIENCE, seen).await, "it is streamed in the clear");
    relay.stop().await;

    for accepted in [url(password, "sslmode=require"), url(password, "sslmode=prefer")] {
        identify(&accepted).await.unwrap_or_else(|error| panic!("{accepted}: {error}"));
    }
    let refused = [
        verified("verify-ca", "other"),
        // The certificate is another host's.
        verified("verify-full", "ca"),
        url("wrong", "sslmode=require"),
        url(password, "sslmode=disable"),
    ];
    for refused in refused {
        assert!(identify(&refused).await.is_err(), "{refused}");
    }
}

async fn identify(url: &str) -> Result<(), Error> {
    Session::open(url).await?.query("IDENTIFY_SYSTEM").await.map(drop)
}
