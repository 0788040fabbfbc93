//! Databases for tests: the same test on a SQLite file and on a PostgreSQL server.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use firmesh_protocol::time::WallTime;
use sqlx::{AnyConnection, AssertSqlSafe, Connection as _, Executor as _, any::install_default_drivers};

use super::{Database, Member, Place, Server, Store, StoreError};
use crate::{authority::Authority, notify::Secret, postgres::Postgres};

/// One server for all tests that run at the same time.
static SERVER: Mutex<Weak<Postgres>> = Mutex::new(Weak::new());

/// A database, with the state folder of one coordinator.
pub(crate) struct TestDatabase {
    folder: tempfile::TempDir,
    place: Place,
    server: Option<(Arc<Postgres>, String)>,
}

impl TestDatabase {
    pub(crate) fn file() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::File(folder.path().join("db.sqlite"));
        Self {
            folder,
            place,
            server: None,
        }
    }

    /// On a server of its own, which may be stopped and restored.
    pub(crate) fn own_server() -> Self {
        Self::on(Arc::new(Postgres::start().unwrap()))
    }

    pub(crate) fn postgres(&self) -> &Postgres {
        &self.server.as_ref().unwrap().0
    }

    pub(crate) fn server() -> Self {
        let postgres = {
            let mut shared = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
            shared.upgrade().unwrap_or_else(|| {
                let started = Arc::new(Postgres::start().unwrap());
                *shared = Arc::downgrade(&started);
                started
            })
        };
        Self::on(postgres)
    }

    fn on(postgres: Arc<Postgres>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut name = [0; 8];
        getrandom::fill(&mut name).unwrap();
        let name = format!("test_{}", hex::encode(name));
        postgres.create_database(&name).unwrap();
        let password = folder.path().join("password");
        std::fs::write(&password, postgres.password()).unwrap();
        std::fs::set_permissions(&password, std::fs::Permissions::from_mode(0o600)).unwrap();
        let place = Place::Server(Server {
            url: postgres.url(&name),
            password: Some(Secret::File(password)),
            connections_min: 1,
            connections_max: 5,
            reach_within: Duration::from_secs(1),
        });
        Self {
            folder,
            place,
            server: Some((postgres, name)),
        }
    }

    /// The same coordinator with a database that was made of this one's backup, as the README has it.
    pub(crate) fn restored(mut self) -> Self {
        let (Some((postgres, name)), Place::Server(server)) = (&mut self.server, &mut self.place) else {
            panic!("it is no server");
        };
        let (dump, new) = (format!("{name}.dump"), format!("{name}_restored"));
        postgres
            .client("pg_dump", &["--format=custom", "--file", &dump, name])
            .unwrap();
        postgres.create_database(&new).unwrap();
        let into = format!("--dbname={new}");
        postgres
            .client(
                "pg_restore",
                &["--clean", "--if-exists", "--exit-on-error", &into, &dump],
            )
            .unwrap();
        server.url = postgres.url(&new);
        *name = new;
        self
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    pub(crate) fn authority(&self) -> Arc<Authority> {
        Arc::new(Authority::load_or_create(self.folder.path(), Vec::new(), WallTime::from_unix_seconds(0)).unwrap())
    }

    /// As a coordinator that starts: whoever led before leads no more.
    pub(crate) async fn open(&self, now: WallTime) -> Result<Store, StoreError> {
        let database = Database::connect(&self.place).await?;
        self.run("UPDATE leadership SET expires_ms = 0").await;
        let term = database
            .take_lead(&member("a"), Duration::from_secs(60), None)
            .await?
            .unwrap();
        Store::open(database, term, self.authority(), now).await
    }

    /// Carries out statements as somebody else with access to the database.
    pub(crate) async fn run(&self, statements: &str) {
        let mut connection = self.connect().await;
        connection.execute(AssertSqlSafe(statements.to_owned())).await.unwrap();
        connection.close().await.unwrap();
    }

    pub(crate) async fn connect(&self) -> AnyConnection {
        install_default_drivers();
        let options = super::database::options(&self.place).unwrap();
        AnyConnection::connect_with(&options).await.unwrap()
    }

    /// Has the database refuse rows of a table, as a full disk would.
    pub(crate) async fn refuse_inserts(&self, table: &str) {
        let statement = match self.server {
            None => format!(
                "CREATE TRIGGER refuse BEFORE INSERT ON {table} BEGIN SELECT RAISE(FAIL, 'the disk is full'); END"
            ),
            Some(_) => format!(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \
                 $$BEGIN RAISE EXCEPTION 'the disk is full'; END$$; \
                 CREATE TRIGGER refuse BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION refuse()"
            ),
        };
        self.run(&statement).await;
    }

    pub(crate) async fn take_inserts_again(&self, table: &str) {
        let statement = match self.server {
            None => "DROP TRIGGER refuse".to_owned(),
            Some(_) => format!("DROP TRIGGER refuse ON {table}; DROP FUNCTION refuse()"),
        };
        self.run(&statement).await;
    }
}

pub(crate) fn member(name: &str) -> Member {
    Member {
        name: name.to_owned(),
        operators: format!("{name}:8640"),
        nodes: format!("{name}:8641"),
    }
}

/// Makes two tests of each function that takes a [`TestDatabase`].
macro_rules! on_both_databases {
    ($($name:ident),+ $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test] async fn $name() { super::$name($crate::store::testing::TestDatabase::file()).await; })+
        }
        mod on_postgres {
            $(#[tokio::test] async fn $name() { super::$name($crate::store::testing::TestDatabase::server()).await; })+
        }
    };
}
pub(crate) use on_both_databases;
