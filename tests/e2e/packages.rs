//! The Debian packages: built twice the same, installed on a clean Debian, started under their units by a real systemd, purged.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use firmesh_tests::{
    binaries::{Program, workspace},
    packages::{ensure_command, find_command, is_root},
    process::Process,
    python::{PYTHON_CYCLONEDX, python_with, run},
    wait::{Seen, Turn, until},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

const PACKAGES: [&str; 3] = ["firmesh", "firmesh-coordinator", "firmesh-node"];

/// Clean roots are kept here: making one takes a minute.
const KEPT: &str = env!("CARGO_TARGET_TMPDIR");

/// A start of systemd, on two busy processors.
const WITHIN: Duration = Duration::from_secs(60);

/// A unit that may do more than that has to be looked at. In tenths of systemd's points.
const EXPOSURE_MAX: &str = "--threshold=20";

#[tokio::test]
async fn packages_start_both_services_on_a_clean_debian() -> Result<()> {
    let _turn = Turn::take().await?;
    let folder = tempfile::Builder::new().prefix("firmesh-e2e-").tempdir_in(KEPT)?;
    let root = folder.path().join("root");
    let packages = [
        build(&folder.path().join("once"))?,
        build(&folder.path().join("again"))?,
    ];
    for (name, (once, again)) in PACKAGES.iter().zip(packages[0].iter().zip(&packages[1])) {
        ensure!(
            fs::read(once)? == fs::read(again)?,
            "{name} is not the same when it is built again"
        );
    }
    if !is_root()? {
        eprintln!("installing packages on a clean Debian is left out: only root can");
        return Ok(());
    }
    run(
        &command("cp")?,
        ["-a".as_ref(), clean_root()?.as_os_str(), root.as_os_str()],
    )?;
    for package in &packages[0] {
        fs::copy(package, root.join("root").join(package.file_name().context("no name")?))?;
    }
    chrooted(&root, "dpkg --install /root/*.deb")?;
    look_at_what_is_installed(&root)?;
    let units = "firmesh-coordinator.service firmesh-node.service";
    chrooted(&root, &format!("systemd-analyze verify --man=no {units}"))?;
    chrooted(
        &root,
        &format!("systemd-analyze security --offline=true {EXPOSURE_MAX} {units}"),
    )?;

    let machine = Machine::boot(&root, &folder.path().join("machine.log")).await?;
    let answers = |port: u16, path: &'static str, with: &'static str| {
        let machine = &machine;
        async move {
            until(&format!("{path} of port {port} to say {with}"), WITHIN, async || {
                let said = machine.shell(&ask(port, path))?;
                Ok(Seen::when(said.contains(with), || said))
            })
            .await
        }
    };
    answers(8640, "/health", "200 OK").await?;
    // Nothing was brought to the node yet: it waits, and has not failed.
    machine.shell("systemctl is-enabled firmesh-node && ! systemctl --quiet is-failed firmesh-node")?;
    machine.shell(CEREMONY)?;
    answers(8653, "/status", "\"coordinator_reachable\":true").await?;
    machine.shell(OUTLIVES)?;
    machine.stop().await?;

    chrooted(&root, &format!("dpkg --purge {}", PACKAGES.join(" ")))?;
    let left = [
        "etc/firmesh/coordinator.toml",
        "etc/firmesh/node.toml",
        "usr/bin/firmesh",
        "usr/share/man/man8/firmesh-node.8.gz",
    ]
    .into_iter()
    .chain([
        "usr/lib/systemd/system/firmesh-node.service",
        "etc/systemd/system/multi-user.target.wants/firmesh-node.service",
    ])
    .find(|file| fs::symlink_metadata(root.join(file)).is_ok());
    ensure!(left.is_none(), "{left:?} is left of the purged packages");
    let keys = root.join("var/lib/firmesh-coordinator/keys/fleet-ca.pem");
    ensure!(keys.is_file(), "a purge took keys that nobody can make again");
    Ok(())
}

/// What a package is built of, as whoever looks for a crate with a known hole reads it.
#[test]
fn what_a_package_is_built_of_is_told_in_a_form_that_others_read() -> Result<()> {
    const VALIDATE: &str = "import sys\n\
        from cyclonedx.schema import SchemaVersion\n\
        from cyclonedx.validation.json import JsonStrictValidator\n\
        error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(open(sys.argv[1]).read())\n\
        sys.exit(str(error) if error else 0)";
    let python = python_with(Path::new(KEPT), "cyclonedx", &PYTHON_CYCLONEDX)?;
    ensure_command("jq", "jq")?;
    let folder = tempfile::tempdir()?;
    for (package, has) in [("firmesh-coordinator", "sqlx"), ("firmesh-node", "quinn")] {
        let tell = || run(&workspace().join("coordinator/packaging/sbom"), [package]);
        let told = tell()?.stdout;
        ensure!(
            told == tell()?.stdout,
            "{package}: another document of the same sources"
        );
        let file = folder.path().join(package);
        fs::write(&file, &told)?;
        run(&python, ["-c".as_ref(), VALIDATE.as_ref(), file.as_os_str()])?;
        let document: Value = serde_json::from_slice(&told)?;
        let components = document["components"].as_array().context("no components")?;
        let is_there = |name: &str| components.iter().any(|component| component["name"] == name);
        ensure!(is_there(has) && is_there("rustls"), "{package} is built of more");
        ensure!(!is_there("proptest"), "{package}: what only tests use");
        let is_ours = |component: &Value| {
            component["name"]
                .as_str()
                .is_some_and(|name| name.starts_with("firmesh-"))
        };
        let unnamed = components
            .iter()
            .find(|one| !is_ours(one) && one["hashes"][0]["content"].is_null());
        ensure!(unnamed.is_none(), "{package}: {unnamed:?} has no checksum");
    }
    Ok(())
}

/// A manual page that leaves out an option, or has one that is gone, helps nobody.
#[test]
fn manual_pages_have_every_option_of_the_services() -> Result<()> {
    for (program, page) in [
        (Program::Node, "node/packaging/firmesh-node.8"),
        (Program::Coordinator, "coordinator/packaging/firmesh-coordinator.8"),
    ] {
        let help = String::from_utf8(run(&program.path()?, ["--help"])?.stdout)?;
        let page = fs::read_to_string(workspace().join(page))?.replace('\\', "");
        let of_help = options(&help);
        ensure!(
            of_help.len() > 5,
            "{} has hardly an option: {of_help:?}",
            program.name()
        );
        let (there, wanted) = (options(&page), of_help);
        ensure!(
            there == wanted,
            "{}: the page has {there:?}, --help {wanted:?}",
            program.name()
        );
    }
    Ok(())
}

/// The long options that a text names.
fn options(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    words.filter(|word| word.len() > 3 && word.starts_with("--")).collect()
}

/// Who holds which keys, a node that is allowed, and what it needs where its configuration says.
const CEREMONY: &str = r#"
    cd /root
    export FIRMESH_TOKEN=$(cat /var/lib/firmesh-coordinator/operator.token)
    exec 3<>/dev/tcp/127.0.0.1/8640
    printf 'GET /api/v1/about HTTP/1.0\r\nHost: localhost\r\n\r\n' >&3
    tail -n 1 <&3 | sed 's/.*"online_key":"\([0-9a-f]*\)".*/\1/' >online.pub
    for group in root release approver; do firmesh key generate --unencrypted keys/$group; done
    firmesh trust init --online-key online.pub --threshold 1 \
        --root-key keys/root.pub --release-key keys/release.pub --approver-key keys/approver.pub
    for group in root release approver; do firmesh trust sign --key keys/$group; done
    firmesh trust publish
    firmesh node enrol r1-n1 --path eu/fra1/r1/r1-n1 --out ticket.json
    printf -- "$(sed -n 's/.*"fleet_ca_pem": "\(.*\)",/\1/p' ticket.json)" >/etc/firmesh/fleet-ca.pem
    cp trust/1.root.json /etc/firmesh/root.json
    sed -n 's/.*"token": "\(.*\)",/\1/p' ticket.json >token
    install --mode=600 --owner=firmesh-node --group=firmesh-node token /etc/firmesh/token
    sed -i 's/coordinator.example/127.0.0.1/' /etc/firmesh/node.toml
    systemctl start firmesh-node
"#;

/// A program that writes a flash is not ended with the node.
const OUTLIVES: &str = r#"
    sleep 1000 </dev/null >/dev/null 2>&1 &
    for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/systemd /sys/fs/cgroup/unified; do
        processes=$hierarchy/system.slice/firmesh-node.service/cgroup.procs
        if [ -e $processes ]; then echo $! >$processes; fi
    done
    grep --quiet firmesh-node.service /proc/$!/cgroup
    systemctl stop firmesh-node
    kill -0 $!
    systemctl start firmesh-node
    kill -0 $!
    systemctl is-active firmesh-node
    kill $!
"#;

/// A request without a program for it: a clean Debian has none.
fn ask(port: u16, path: &str) -> String {
    format!(
        "exec 3<>/dev/tcp/127.0.0.1/{port}; printf 'GET {path} HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n' >&3; cat <&3"
    )
}

fn look_at_what_is_installed(root: &Path) -> Result<()> {
    let users = fs::read_to_string(root.join("etc/passwd"))?;
    let user = |name: &str| {
        let line = users.lines().find(|line| line.starts_with(&format!("{name}:")));
        let number = line.and_then(|line| line.split(':').nth(2)?.parse::<u32>().ok());
        number.with_context(|| format!("there is no user {name}"))
    };
    let (coordinator, node) = (user("firmesh-coordinator")?, user("firmesh-node")?);
    for (path, mode, owner, group) in [
        ("etc/firmesh", 0o755, 0, 0),
        ("etc/firmesh/coordinator.toml", 0o640, 0, coordinator),
        ("etc/firmesh/node.toml", 0o640, 0, node),
        ("var/lib/firmesh-coordinator", 0o700, coordinator, coordinator),
        ("var/lib/firmesh-node", 0o700, node, node),
        ("usr/bin/firmesh", 0o755, 0, 0),
        ("usr/share/man/man1/firmesh-campaign-create.1.gz", 0o644, 0, 0),
        ("usr/share/bash-completion/completions/firmesh", 0o644, 0, 0),
        ("usr/share/zsh/vendor-completions/_firmesh", 0o644, 0, 0),
        ("usr/share/fish/vendor_completions.d/firmesh.fish", 0o644, 0, 0),
    ] {
        let found = fs::metadata(root.join(path)).with_context(|| format!("{path} is not installed"))?;
        let found = (found.permissions().mode() & 0o7777, found.uid(), found.gid());
        ensure!(
            found == (mode, owner, group),
            "{path} is {found:?}, not {:?}",
            (mode, owner, group)
        );
    }
    Ok(())
}

/// Builds the packages by the command of the README, unpacked: packing well takes long.
fn build(out: &Path) -> Result<Vec<PathBuf>> {
    ensure_command("dpkg-shlibdeps", "dpkg-dev")?;
    ensure_command("strip", "binutils")?;
    ensure_command("jq", "jq")?;
    let binaries = Program::Operator.path()?;
    let mut command = Command::new(workspace().join("coordinator/packaging/build"));
    command
        .arg(binaries.parent().context("the binaries lie nowhere")?)
        .arg(out)
        .env("DPKG_DEB_COMPRESSOR_TYPE", "none");
    let output = command.output().context("the packages cannot be built")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the packages cannot be built: {said}");
    let files = fs::read_dir(out)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<BTreeSet<_>>>()?;
    PACKAGES
        .iter()
        .map(|package| {
            let begin = format!("{package}_");
            let found = files.iter().find(|file| {
                file.file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with(&begin))
            });
            found.cloned().with_context(|| format!("{package} was not built"))
        })
        .collect()
}

/// A Debian of this machine's release with nothing but systemd; made once and kept.
fn clean_root() -> Result<PathBuf> {
    let debootstrap = ensure_command("debootstrap", "debootstrap")?;
    let release = fs::read_to_string("/etc/os-release").context("this is no Debian")?;
    let suite = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .context("this Debian has no name")?;
    let [kept, partial] =
        [format!("clean-{suite}"), format!("clean-{suite}.partial")].map(|name| Path::new(KEPT).join(name));
    // One test process at a time makes it, the others find it made.
    let lock = File::create(Path::new(KEPT).join("clean.lock"))?;
    lock.lock().context("cannot lock a file")?;
    if !kept.is_dir() {
        if partial.exists() {
            fs::remove_dir_all(&partial)?;
        }
        run(
            &debootstrap,
            [
                "--variant=minbase".as_ref(),
                "--include=systemd".as_ref(),
                suite.as_ref(),
                partial.as_os_str(),
            ],
        )
        .context("debootstrap cannot make a clean Debian: is there a network?")?;
        fs::rename(&partial, &kept)?;
    }
    Ok(kept)
}

fn command(name: &str) -> Result<PathBuf> {
    find_command(name).with_context(|| format!("there is no {name} here"))
}

/// Runs a script in a root that has `/proc`, which is gone with the script.
fn chrooted(root: &Path, script: &str) -> Result<String> {
    let at = root.display();
    let outer = format!(
        "mount -t proc proc '{at}/proc' && exec chroot '{at}' env DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin bash -euc \"$0\""
    );
    let output = run(&command("unshare")?, ["--mount", "sh", "-euc", &outer, script])?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A machine with a systemd of its own and a network of its own, in a root.
struct Machine {
    nspawn: Process,
    /// The systemd in it: ended first, or it would outlive whatever ends the container's process.
    leader: Pid,
}

impl Machine {
    async fn boot(root: &Path, log: &Path) -> Result<Self> {
        let mut nspawn = Command::new(ensure_command("systemd-nspawn", "systemd-container")?);
        nspawn.arg("--directory").arg(root);
        nspawn.args([
            "--boot",
            "--quiet",
            "--register=no",
            "--keep-unit",
            "--private-network",
            "--console=pipe",
        ]);
        let mut nspawn = Process::spawn("systemd-nspawn", nspawn, log)?;
        let leader = until("a systemd to start in a container", WITHIN, async || {
            if let Some(status) = nspawn.ended()? {
                return Ok(Seen::Yes(Err(anyhow::anyhow!(
                    "it has ended ({status}): {}",
                    nspawn.log()
                ))));
            }
            let id = nspawn.id();
            let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"))?;
            let child: i32 = children
                .split_whitespace()
                .next()
                .context("it has no child yet")?
                .parse()?;
            let name = fs::read_to_string(format!("/proc/{child}/comm"))?;
            Ok(match name.trim() == "systemd" {
                true => Seen::Yes(Ok(Pid::from_raw(child))),
                false => Seen::NotYet(name),
            })
        })
        .await??;
        Ok(Self { nspawn, leader })
    }

    /// Runs a script in it; answers what it printed.
    fn shell(&self, script: &str) -> Result<String> {
        let leader = self.leader.to_string();
        let output = run(
            &command("nsenter")?,
            ["--target", &leader, "--all", "bash", "-euc", script],
        )?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Shuts it down, as a person would.
    async fn stop(mut self) -> Result<()> {
        let status = self.nspawn.stop(WITHIN).await?;
        ensure!(status.success(), "the machine did not shut down: {}", self.nspawn.log());
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Its number is nobody else's before the container's process has ended.
        if matches!(self.nspawn.ended(), Ok(None)) {
            let _gone_already = kill(self.leader, Signal::SIGKILL);
        }
    }
}
