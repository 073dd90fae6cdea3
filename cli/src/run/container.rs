//! Containers of a Compose service as the engine's API writes them: reading lists, and writing the wish for one more. Pure.
//!
//! The rule it keeps: one more container is a copy of one that Compose made, under the next number; what can exist once
//! only (a name, a published port, a fixed address) is left out, so that Compose takes the copy for one of its own.

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::NUMBER_VARIABLE;

/// The label with the project's name.
pub(crate) const PROJECT: &str = "com.docker.compose.project";
/// The label with the service's name.
pub(crate) const SERVICE: &str = "com.docker.compose.service";
/// The label with the number of a container among those of its service.
const NUMBER: &str = "com.docker.compose.container-number";
/// The label that tells what `docker compose run` made from what belongs to the service.
const ONE_OFF: &str = "com.docker.compose.oneoff";
/// So many digits of its id are the host name that the engine gives a container, and an alias of it.
const SHORT_ID_CHARS: usize = 12;

/// A container of the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) project: String,
    pub(crate) number: u32,
    /// Whether it runs, or will by the engine's own doing.
    pub(crate) runs: bool,
}

/// The labels by which the engine finds the containers of a service.
pub(crate) fn filters(service: &str, project: Option<&str>) -> String {
    let mut labels = vec![format!("{SERVICE}={service}"), format!("{ONE_OFF}=False")];
    labels.extend(project.map(|project| format!("{PROJECT}={project}")));
    json!({ "label": labels }).to_string()
}

/// Reads the engine's list, in the order of their numbers.
///
/// # Errors
/// When it is no such list.
pub(crate) fn read_list(list: Value) -> anyhow::Result<Vec<Container>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Listed {
        id: String,
        state: String,
        labels: std::collections::BTreeMap<String, String>,
    }
    let listed: Vec<Listed> =
        serde_json::from_value(list).context("the list of containers cannot be read")?;
    let mut containers: Vec<Container> = listed
        .into_iter()
        .filter_map(|mut c| {
            Some(Container {
                number: c.labels.get(NUMBER)?.parse().ok()?,
                project: c.labels.remove(PROJECT)?,
                runs: matches!(c.state.as_str(), "running" | "restarting" | "paused"),
                id: c.id,
            })
        })
        .collect();
    containers.sort_by_key(|c| c.number);
    Ok(containers)
}

/// What is sent to the engine for one more container.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Creation {
    pub(crate) name: String,
    pub(crate) body: Value,
    /// Networks beyond the first, with their endpoints: older engines take one at the creation.
    pub(crate) further_networks: Vec<(String, Value)>,
}

/// Writes the wish for a copy of a container under another number.
///
/// # Errors
/// When the engine's words about the container lack something that a copy needs.
pub(crate) fn copy_of(
    inspected: &Value,
    service: &str,
    project: &str,
    number: u32,
) -> anyhow::Result<Creation> {
    let text = |pointer: &str| inspected.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let id = text("/Id");
    let short_id = id.get(..SHORT_ID_CHARS).unwrap_or(id);
    let (Some(config), Some(host)) = (
        inspected.get("Config").and_then(Value::as_object),
        inspected.get("HostConfig").and_then(Value::as_object),
    ) else {
        bail!("the engine does not tell the configuration of the container {short_id}");
    };
    let name = format!("{project}-{service}-{number}");
    let mut body = config.clone();
    // By its id: under its name there may be another image by now.
    body.insert("Image".into(), text("/Image").into());
    if text("/Config/Hostname") == short_id {
        body.remove("Hostname");
    }
    body.remove("MacAddress");
    body.insert("Env".into(), environment(config.get("Env"), number));
    let mut labels = config.get("Labels").and_then(Value::as_object).cloned().unwrap_or_default();
    labels.insert(NUMBER.into(), number.to_string().into());
    labels.remove("com.docker.compose.replace");
    body.insert("Labels".into(), labels.into());
    body.insert("HostConfig".into(), without_host_ports(host.clone()).into());

    let old_name = text("/Name").trim_start_matches('/');
    let mut networks = networks(inspected, text("/HostConfig/NetworkMode"), &[short_id, old_name], &name);
    let further_networks = networks.split_off(networks.len().min(1));
    let first: Map<String, Value> = networks.into_iter().collect();
    body.insert("NetworkingConfig".into(), json!({ "EndpointsConfig": first }));
    Ok(Creation { name, body: body.into(), further_networks })
}

fn environment(env: Option<&Value>, number: u32) -> Value {
    let variables = env.and_then(Value::as_array).into_iter().flatten();
    let is_number = |v: &Value| v.as_str().is_some_and(|v| v.split('=').next() == Some(NUMBER_VARIABLE));
    let mut variables: Vec<Value> = variables.filter(|v| !is_number(v)).cloned().collect();
    variables.push(format!("{NUMBER_VARIABLE}={number}").into());
    variables.into()
}

/// A port of the host can be published once: the engine chooses another one for the copy.
fn without_host_ports(mut host: Map<String, Value>) -> Map<String, Value> {
    let ports = host.get_mut("PortBindings").and_then(Value::as_object_mut);
    let bindings = ports.into_iter().flat_map(Map::values_mut).filter_map(Value::as_array_mut).flatten();
    for binding in bindings {
        if let Some(binding) = binding.as_object_mut() {
            binding.insert("HostPort".into(), "".into());
        }
    }
    host
}

/// The networks of the copy, the one that the container's mode names first.
fn networks(inspected: &Value, mode: &str, own_names: &[&str], name: &str) -> Vec<(String, Value)> {
    // These share what another has, and join nothing.
    if matches!(mode, "host" | "none") || mode.starts_with("container:") {
        return Vec::new();
    }
    let found = inspected.pointer("/NetworkSettings/Networks").and_then(Value::as_object);
    let mut networks: Vec<(String, Value)> = found
        .into_iter()
        .flatten()
        .map(|(network, endpoint)| {
            let aliases = endpoint.get("Aliases").and_then(Value::as_array).into_iter().flatten();
            let mut aliases: Vec<&str> =
                aliases.filter_map(Value::as_str).filter(|alias| !own_names.contains(alias)).collect();
            aliases.push(name);
            let options = endpoint.get("DriverOpts").cloned().unwrap_or_default();
            (network.clone(), json!({ "Aliases": aliases, "DriverOpts": options }))
        })
        .collect();
    networks.sort_by_key(|(network, _)| network != mode);
    networks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inspected() -> Value {
        json!({
            "Id": "0123456789abcdef0123", "Name": "/shop-lead-bot-1", "Image": "sha256:feed",
            "Config": {
                "Hostname": "0123456789ab", "Image": "agents:latest", "Cmd": ["lead-bot"], "Entrypoint": null,
                "Env": ["MESH_NATS_URL=nats://nats:4222", "MESH_INSTANCE_NUMBER=1"],
                "Labels": {
                    "com.docker.compose.project": "shop", "com.docker.compose.service": "lead-bot",
                    "com.docker.compose.container-number": "1", "com.docker.compose.config-hash": "beef",
                    "com.docker.compose.replace": "old",
                },
            },
            "HostConfig": {
                "NetworkMode": "shop_default", "ReadonlyRootfs": true,
                "PortBindings": {"8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}]},
            },
            "NetworkSettings": {"Networks": {
                "shop_back": {"Aliases": ["lead-bot"], "IPAMConfig": {"IPv4Address": "10.0.0.9"}},
                "shop_default": {"Aliases": ["shop-lead-bot-1", "lead-bot", "0123456789ab"], "IPAddress": "10.1.0.2"},
            }},
        })
    }

    #[test]
    fn containers_are_found_by_their_labels_and_ordered_by_number() {
        let filters: Value = serde_json::from_str(&filters("lead-bot", Some("shop"))).unwrap();
        assert_eq!(
            filters["label"],
            json!([
                "com.docker.compose.service=lead-bot",
                "com.docker.compose.oneoff=False",
                "com.docker.compose.project=shop"
            ])
        );
        let one = |id: &str, number: &str, state: &str| {
            json!({"Id": id, "State": state, "Names": ["/x"],
                   "Labels": {PROJECT: "shop", SERVICE: "lead-bot", NUMBER: number}})
        };
        let list = json!([one("c", "10", "exited"), one("b", "2", "running"), one("a", "1", "restarting"),
                          {"Id": "z", "State": "running", "Labels": {}}]);
        let containers = read_list(list).unwrap();
        let seen: Vec<_> = containers.iter().map(|c| (c.id.as_str(), c.number, c.runs)).collect();
        assert_eq!(seen, [("a", 1, true), ("b", 2, true), ("c", 10, false)]);
        assert!(read_list(json!({"message": "no"})).is_err());
    }

    #[test]
    fn a_copy_has_the_configuration_and_the_next_number() {
        let Creation { name, body, .. } = copy_of(&inspected(), "lead-bot", "shop", 4).unwrap();
        assert_eq!(name, "shop-lead-bot-4");
        assert_eq!((&body["Image"], &body["Cmd"]), (&json!("sha256:feed"), &json!(["lead-bot"])));
        assert_eq!(body["Env"], json!(["MESH_NATS_URL=nats://nats:4222", "MESH_INSTANCE_NUMBER=4"]));
        let labels = &body["Labels"];
        assert_eq!(labels[NUMBER], "4");
        assert_eq!(labels["com.docker.compose.config-hash"], "beef");
        assert_eq!(labels.get("com.docker.compose.replace"), None);
        assert_eq!(body["HostConfig"]["ReadonlyRootfs"], true);
    }

    #[test]
    fn what_can_exist_once_only_is_not_copied() {
        let Creation { body, further_networks, .. } = copy_of(&inspected(), "lead-bot", "shop", 4).unwrap();
        assert_eq!(body.get("Hostname"), None);
        let port = &body["HostConfig"]["PortBindings"]["8080/tcp"][0];
        assert_eq!((&port["HostIp"], &port["HostPort"]), (&json!("127.0.0.1"), &json!("")));
        let networks = &body["NetworkingConfig"]["EndpointsConfig"];
        assert_eq!(
            networks,
            &json!({"shop_default": {"Aliases": ["lead-bot", "shop-lead-bot-4"], "DriverOpts": null}})
        );
        let [(network, endpoint)] = further_networks.as_slice() else { panic!("{further_networks:?}") };
        assert_eq!((network.as_str(), endpoint.get("IPAMConfig")), ("shop_back", None));
    }

    #[test]
    fn a_host_name_that_was_chosen_stays_and_a_shared_network_is_not_joined() {
        let mut chosen = inspected();
        chosen["Config"]["Hostname"] = "lead".into();
        chosen["HostConfig"]["NetworkMode"] = "host".into();
        let Creation { body, further_networks, .. } = copy_of(&chosen, "lead-bot", "shop", 2).unwrap();
        assert_eq!(body["Hostname"], "lead");
        assert_eq!(body["NetworkingConfig"]["EndpointsConfig"], json!({}));
        assert!(further_networks.is_empty());
        assert!(copy_of(&json!({"Id": "0123"}), "lead-bot", "shop", 2).is_err());
    }
}
