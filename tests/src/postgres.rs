//! A PostgreSQL server for a test: on loopback, in a folder of its own, ended with the test. The coordinator's own tests
//! include this file, and the one about packages.

use std::{
    fs,
    net::TcpListener,
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _, chown},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;

use crate::packages::ensure_that;

/// Its only user's password.
const PASSWORD: &str = "a password with : and @ in it";

/// A server. Dropping it ends it.
#[derive(Debug)]
pub struct Postgres {
    folder: TempDir,
    programs: PathBuf,
    port: u16,
    /// Who runs it: it refuses to be run by root.
    user: Option<(u32, u32)>,
}

impl Postgres {
    /// Starts a server, installing it first if need be.
    ///
    /// # Errors
    /// What is missing, by name, or what the server said.
    pub fn start() -> Result<Self> {
        let programs = ensure_that("postgresql", programs)?;
        let folder = tempfile::Builder::new().prefix("firmesh-postgres-").tempdir()?;
        let is_root = fs::metadata("/proc/self")?.uid() == 0;
        let user = if is_root { Some(account("postgres")?) } else { None };
        let password = folder.path().join("password");
        fs::write(&password, PASSWORD)?;
        fs::set_permissions(&password, fs::Permissions::from_mode(0o600))?;
        if let Some((uid, gid)) = user {
            chown(folder.path(), Some(uid), Some(gid))?;
            chown(&password, Some(uid), Some(gid))?;
        }
        let mut server = Self {
            folder,
            programs,
            port: 0,
            user,
        };
        let (data, password) = (server.data(), password.display().to_string());
        let init = [
            "-D",
            &data,
            "-U",
            "fleet",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
        ];
        let auth = ["--auth=scram-sha-256", "--pwfile", &password];
        server.run("initdb", &[&init[..], &auth[..]].concat())?;
        // Somebody may take the port in between.
        let mut last = None;
        for _ in 0..5 {
            server.port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
            match server.go_on() {
                Ok(()) => return Ok(server),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("it was never started")))
    }

    /// Has it keep its write-ahead log in a folder of its own, for restores to a point in time, and takes a base backup.
    ///
    /// # Errors
    /// What it said.
    pub fn back_up(&self) -> Result<()> {
        let wal = self.path("wal");
        fs::create_dir(&wal)?;
        if let Some((uid, gid)) = self.user {
            chown(&wal, Some(uid), Some(gid))?;
        }
        // Whoever waits for a file finds all of it.
        let archive =
            format!("archive_mode = on\narchive_command = 'cp %p {wal}/%f.part && mv {wal}/%f.part {wal}/%f'\n");
        self.configure(&self.data(), &archive)?;
        self.stop()?;
        self.go_on()?;
        let base = self.path("base");
        let how = ["-D", &base, "--checkpoint=fast", "--wal-method=fetch", "--no-sync"];
        self.client("pg_basebackup", &how).map(drop)
    }

    /// Takes what the backup and the log have of the moment `time`, in place of what there is now.
    ///
    /// # Errors
    /// What it said.
    pub fn restore(&self, time: &str) -> Result<()> {
        // The server is lost, but for what it has archived.
        self.stop()?;
        fs::remove_dir_all(self.data())?;
        fs::rename(self.path("base"), self.data())?;
        let wal = self.path("wal");
        let recovery = format!(
            "restore_command = 'cp {wal}/%f %p'\nrecovery_target_time = '{time}'\nrecovery_target_action = 'promote'\n"
        );
        self.configure(&self.data(), &recovery)?;
        let signal = Path::new(&self.data()).join("recovery.signal");
        fs::write(&signal, "")?;
        if let Some((uid, gid)) = self.user {
            chown(&signal, Some(uid), Some(gid))?;
        }
        self.go_on()?;
        // It answers questions before it is done.
        for _ in 0..600 {
            let asked = self.client("psql", &["-Atc", "SELECT pg_is_in_recovery()", "postgres"])?;
            if asked.stdout.starts_with(b"f") {
                return Ok(());
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        bail!("the server did not come to the moment {time}")
    }

    /// Whether a file of the log is archived.
    #[must_use]
    pub fn has_archived(&self, file: &str) -> bool {
        Path::new(&self.path("wal")).join(file).is_file()
    }

    fn configure(&self, data: &str, lines: &str) -> Result<()> {
        use std::io::Write as _;
        let mut file = fs::File::options()
            .append(true)
            .open(Path::new(data).join("postgresql.conf"))?;
        Ok(file.write_all(lines.as_bytes())?)
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Starts it again where it was, and waits until it answers.
    ///
    /// # Errors
    /// What it said.
    pub fn go_on(&self) -> Result<()> {
        // The data die with the test: only crashes of its clients are tested.
        let options = format!(
            "-p {} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c max_connections=200 -c fsync=off",
            self.port
        );
        let log = self.folder.path().join("log").display().to_string();
        let started = self.run(
            "pg_ctl",
            &[
                "-D",
                &self.data(),
                "-w",
                "-t",
                "60",
                "-l",
                &log,
                "-o",
                &options,
                "start",
            ],
        );
        started
            .map(drop)
            .with_context(|| fs::read_to_string(&log).unwrap_or_default())
    }

    /// Ends it as a crash of its machine would.
    ///
    /// # Errors
    /// What it said.
    pub fn stop(&self) -> Result<()> {
        self.run("pg_ctl", &["-D", &self.data(), "-w", "-m", "immediate", "stop"])
            .map(drop)
    }

    /// Makes a database.
    ///
    /// # Errors
    /// What it said.
    pub fn create_database(&self, name: &str) -> Result<()> {
        self.client("createdb", &[name]).map(drop)
    }

    /// Runs a client program, such as `psql`, as the server's user.
    ///
    /// # Errors
    /// What it said.
    pub fn client(&self, program: &str, args: &[&str]) -> Result<Output> {
        let port = self.port.to_string();
        self.run(
            program,
            &[&["-h", "127.0.0.1", "-p", &port, "-U", "fleet"], args].concat(),
        )
    }

    /// Where clients find a database; the password is [`Self::password`].
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://fleet@127.0.0.1:{}/{database}", self.port)
    }

    /// The user's password.
    #[must_use]
    pub fn password(&self) -> &'static str {
        PASSWORD
    }

    fn data(&self) -> String {
        self.folder.path().join("data").display().to_string()
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<Output> {
        let mut command = Command::new(self.programs.join(program));
        command
            .args(args)
            .env("PGPASSWORD", PASSWORD)
            .current_dir(self.folder.path())
            .stdin(Stdio::null());
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        // A server that goes on in the background would hold a pipe open.
        let (said, complained) = (tempfile::tempfile()?, tempfile::NamedTempFile::new()?);
        command.stdout(said.try_clone()?).stderr(complained.reopen()?);
        let status = command
            .status()
            .with_context(|| format!("{program} cannot be started"))?;
        let complaint = fs::read(complained.path())?;
        ensure!(
            status.success(),
            "{program} failed: {}",
            String::from_utf8_lossy(&complaint).trim_end()
        );
        let mut stdout = Vec::new();
        let mut said = said;
        std::io::Seek::rewind(&mut said)?;
        std::io::Read::read_to_end(&mut said, &mut stdout)?;
        Ok(Output {
            status,
            stdout,
            stderr: complaint,
        })
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // It may have been stopped already.
        let _ = self.stop();
    }
}

/// Where the newest server's programs are: Debian keeps them off the path.
fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
    let folders = versions.filter_map(|entry| Some(entry.ok()?.path().join("bin")));
    folders.filter(|folder| has_all(folder)).max()
}

fn has_all(folder: &Path) -> bool {
    ["initdb", "pg_ctl", "createdb"]
        .iter()
        .all(|program| folder.join(program).is_file())
}

fn account(name: &str) -> Result<(u32, u32)> {
    let accounts = fs::read_to_string("/etc/passwd")?;
    for account in accounts.lines() {
        if let [found, _, uid, gid, ..] = account.split(':').collect::<Vec<_>>()[..]
            && found == name
        {
            return Ok((uid.parse()?, gid.parse()?));
        }
    }
    bail!("there is no user {name}, which the package postgresql brings")
}
