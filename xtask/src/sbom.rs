//! A bill of materials of the daemon, in CycloneDX 1.5 (ECMA-424): every crate that is linked into
//! it, with version, licence and checksum, as cargo resolved them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::run::cargo;

/// The package whose materials these are.
const SUBJECT: &str = "dns-proxy";
/// Compiled for the kernel and embedded, so that cargo sees no dependency on it.
const EMBEDDED: &str = "dns-proxy-ebpf";
/// Where it runs.
const KERNEL: &str = "bpfel-unknown-none";

/// Writes it to a file.
pub(crate) fn write(to: &Path, target: &str) -> Result<()> {
    let checksums = checksums(&fs::read_to_string("Cargo.lock")?);
    let bill = bill(&metadata(target)?, &metadata(KERNEL)?, &checksums);
    let bill = bill.context("cargo metadata has another form than known")?;
    fs::write(to, serde_json::to_vec_pretty(&bill)?)
        .with_context(|| format!("cannot write {}", to.display()))
}

/// What cargo knows of the packages for a target.
fn metadata(target: &str) -> Result<Value> {
    let mut metadata = cargo("metadata --format-version 1 --locked");
    let output = metadata.args(["--filter-platform", target]).output()?;
    let said = || String::from_utf8_lossy(&output.stderr).into_owned();
    serde_json::from_slice(&output.stdout).with_context(said)
}

fn bill(
    metadata: &Value,
    kernel: &Value,
    checksums: &BTreeMap<(String, String), String>,
) -> Option<Value> {
    let mut packages = BTreeMap::new();
    for metadata in [metadata, kernel] {
        for package in metadata["packages"].as_array()? {
            packages.insert(package["id"].as_str()?, package);
        }
    }
    let subject = packages.iter().find(|(_, package)| package["name"] == SUBJECT)?.0;
    let embedded = packages.iter().find(|(_, package)| package["name"] == EMBEDDED)?.0;
    let mut linked = reached(metadata, subject)?;
    linked.extend(reached(kernel, embedded)?);
    let component = |id: &&str| {
        let package = packages.get(*id)?;
        let (name, version) = (package["name"].as_str()?, package["version"].as_str()?);
        let mut component = json!({
            "type": "library", "bom-ref": id, "name": name, "version": version,
            "purl": format!("pkg:cargo/{name}@{version}"),
        });
        if let Some(license) = package["license"].as_str() {
            // Old crates write a slash for OR, which SPDX does not know.
            component["licenses"] = json!([{ "expression": license.replace('/', " OR ") }]);
        }
        if let Some(digest) = checksums.get(&(name.to_owned(), version.to_owned())) {
            component["hashes"] = json!([{ "alg": "SHA-256", "content": digest }]);
        }
        Some(component)
    };
    let others = linked.iter().filter(|id| *id != subject);
    let components = others.map(component).collect::<Option<Vec<_>>>()?;
    let mut this = component(subject)?;
    this["type"] = json!("application");
    Some(json!({
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
        "metadata": { "component": this },
        "components": components,
    }))
}

/// What is reached from a package by normal dependencies, itself included.
fn reached<'a>(metadata: &'a Value, from: &'a str) -> Option<BTreeSet<&'a str>> {
    let nodes: BTreeMap<&str, &Value> = metadata["resolve"]["nodes"]
        .as_array()?
        .iter()
        .map(|node| Some((node["id"].as_str()?, node)))
        .collect::<Option<_>>()?;
    let (mut found, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(id) = open.pop() {
        if !found.insert(id) {
            continue;
        }
        for dependency in nodes.get(id)?["deps"].as_array()? {
            let kinds = dependency["dep_kinds"].as_array()?;
            if kinds.iter().any(|kind| kind["kind"].is_null()) {
                open.push(dependency["pkg"].as_str()?);
            }
        }
    }
    Some(found)
}

/// From Cargo.lock, by name and version.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let packages = lock.split("[[package]]").filter_map(|package| {
        let field = |name: &str| {
            let line = |line: &str| Some(line.strip_prefix(name)?.trim_matches('"').to_owned());
            package.lines().find_map(line)
        };
        Some(((field("name = ")?, field("version = ")?), field("checksum = ")?))
    });
    packages.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_linked_is_named_and_what_only_builds_is_not() {
        let package = |name: &str, license: &str| json!({ "id": name, "name": name, "version": "1.0.0", "license": license });
        let node = |id: &str, deps: &[(&str, Option<&str>)]| {
            let deps = deps
                .iter()
                .map(|(pkg, kind)| json!({ "pkg": pkg, "dep_kinds": [{ "kind": kind }] }));
            json!({ "id": id, "deps": deps.collect::<Vec<_>>() })
        };
        let metadata = json!({
            "packages": [
                package(SUBJECT, "MIT"), package(EMBEDDED, "MIT"), package("a", "MIT/Apache-2.0"),
                package("b", "MIT"), package("tool", "MIT"),
            ],
            "resolve": { "nodes": [
                node(SUBJECT, &[("a", None), ("tool", Some("build"))]), node("a", &[("b", None)]),
                node(EMBEDDED, &[]), node("b", &[]), node("tool", &[]),
            ] },
        });
        let lock = "[[package]]\nname = \"b\"\nversion = \"1.0.0\"\nchecksum = \"abc\"\n";
        let bill = bill(&metadata, &metadata, &checksums(lock)).expect("well-formed");
        let names: Vec<_> =
            bill["components"].as_array().expect("a list").iter().map(|c| &c["name"]).collect();
        assert_eq!(names, ["a", "b", EMBEDDED]);
        assert_eq!(bill["components"][0]["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert_eq!(bill["components"][1]["hashes"][0]["content"], "abc");
        assert_eq!(bill["metadata"]["component"]["name"], SUBJECT);
    }
}
