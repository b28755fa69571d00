//! Whether a live object is as wished: every field of the wish has its value. Pure.
//!
//! Fields that the wish does not name belong to others (the API server's defaults, a user's label) and are
//! never looked at. Lists that Kubernetes merges by key are compared by that key; all others are compared
//! whole, because whoever owns a part of them owns all of it.

use serde_json::Value;

use crate::quantity;

/// Most differences that are named.
const MAX_NAMED: usize = 8;

/// Paths where the live object differs from the wish; empty when it is as wished.
#[must_use]
pub fn differences(wish: &Value, live: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare("", wish, live, &mut found);
    found.truncate(MAX_NAMED);
    found
}

fn compare(path: &str, wish: &Value, live: &Value, found: &mut Vec<String>) {
    match (wish, live) {
        (Value::Object(_), Value::Object(_)) if is_selector(path) => {
            if wish != live {
                found.push(path.to_owned());
            }
        }
        (Value::Object(wish), Value::Object(live)) => {
            for (key, value) in wish {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                match live.get(key) {
                    Some(live) => compare(&path, value, live, found),
                    None if is_nothing(value) => {}
                    None => found.push(path),
                }
            }
        }
        (Value::Array(wish), Value::Array(live)) => compare_lists(path, wish, live, found),
        (Value::String(wish), Value::String(live)) if is_quantity(path) => {
            let same = wish == live
                || quantity::billionths(wish).is_some_and(|wish| Some(wish) == quantity::billionths(live));
            if !same {
                found.push(path.to_owned());
            }
        }
        (wish, live) if wish == live => {}
        _ => found.push(path.to_owned()),
    }
}

fn compare_lists(path: &str, wish: &[Value], live: &[Value], found: &mut Vec<String>) {
    let Some(keys) = merge_keys(path) else {
        if wish != live {
            found.push(path.to_owned());
        }
        return;
    };
    for item in wish {
        let twin = live.iter().find(|live| keys.iter().all(|key| item.get(key) == live.get(key)));
        let label: Vec<String> = keys
            .iter()
            .filter_map(|key| item.get(key))
            .map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned))
            .collect();
        let path = format!("{path}[{}]", label.join("/"));
        match twin {
            Some(twin) => compare(&path, item, twin, found),
            None => found.push(path),
        }
    }
}

/// Entries of merged lists that have the name of a wished entry and another key, as a JSON pointer to each with
/// the entry that belongs there.
#[must_use]
pub fn impostors(wish: &Value, live: &Value) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    find_impostors("", "", wish, live, &mut found);
    found
}

fn find_impostors(path: &str, pointer: &str, wish: &Value, live: &Value, found: &mut Vec<(String, Value)>) {
    match (wish, live) {
        (Value::Object(wish), Value::Object(live)) => {
            for (field, wish) in wish {
                let path = if path.is_empty() { field.clone() } else { format!("{path}.{field}") };
                if let Some(live) = live.get(field) {
                    find_impostors(&path, &format!("{pointer}/{field}"), wish, live, found);
                }
            }
        }
        (Value::Array(wish), Value::Array(live)) => {
            let Some(keys) = merge_keys(path) else { return };
            let same_key = |a: &Value, b: &Value| keys.iter().all(|key| a.get(key) == b.get(key));
            for entry in wish {
                let twin = live.iter().enumerate().find(|(_, live)| same_key(entry, live));
                let namesake = || {
                    live.iter().position(|live| {
                        entry.get("name").is_some_and(|name| live.get("name") == Some(name))
                            && !wish.iter().any(|wish| same_key(wish, live))
                    })
                };
                if let Some((at, live)) = twin {
                    find_impostors(&format!("{path}[]"), &format!("{pointer}/{at}"), entry, live, found);
                } else if let Some(at) = namesake() {
                    found.push((format!("{pointer}/{at}"), entry.clone()));
                }
            }
        }
        _ => {}
    }
}

/// Keys of the lists that Kubernetes merges, among those that owned objects have.
fn merge_keys(path: &str) -> Option<&'static [&'static str]> {
    let list = path.rsplit('.').next()?;
    match (list, path) {
        ("ownerReferences", _) => Some(&["uid"]),
        ("containers" | "env" | "volumes" | "imagePullSecrets", _) => Some(&["name"]),
        ("volumeMounts", _) => Some(&["mountPath"]),
        ("topologySpreadConstraints", _) => Some(&["topologyKey", "whenUnsatisfiable"]),
        ("ports", "spec.ports") => Some(&["port", "protocol"]),
        ("ports", path) if path.contains("containers[") => Some(&["containerPort", "protocol"]),
        // There is one, and the API server adds a status to it.
        ("volumeClaimTemplates", _) => Some(&[]),
        _ => None,
    }
}

/// Selectors are one value as well: one more label in them selects other pods.
fn is_selector(path: &str) -> bool {
    path.rsplit('.').next().is_some_and(|field| field.ends_with("elector"))
}

fn is_quantity(path: &str) -> bool {
    path.contains("resources.requests.") || path.contains("resources.limits.")
}

/// The API server stores neither null nor empty lists.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case::defaults_of_the_server(json!({"spec": {"a": 1}}), json!({"spec": {"a": 1, "b": 2}, "status": {}}))]
    #[case::same_amount(
        json!({"resources": {"limits": {"memory": "1024Mi", "cpu": "0.5"}}}),
        json!({"resources": {"limits": {"memory": "1Gi", "cpu": "500m"}}})
    )]
    #[case::empty_list(json!({"spec": {"tolerations": []}}), json!({"spec": {}}))]
    #[case::somebodys_variable(
        json!({"containers": [{"name": "a", "env": [{"name": "X", "value": "1"}]}]}),
        json!({"containers": [{"name": "a", "env": [{"name": "Y", "value": "2"}, {"name": "X", "value": "1"}]}]})
    )]
    #[case::somebodys_container(
        json!({"containers": [{"name": "a"}]}),
        json!({"containers": [{"name": "injected"}, {"name": "a"}]})
    )]
    fn what_others_add_is_no_difference(#[case] wish: Value, #[case] live: Value) {
        assert_eq!(differences(&wish, &live), Vec::<String>::new());
    }

    #[rstest]
    #[case(json!({"spec": {"a": 1}}), json!({"spec": {"a": 2}}), "spec.a")]
    #[case(json!({"spec": {"a": 1}}), json!({"spec": {}}), "spec.a")]
    #[case(
        json!({"metadata": {"labels": {"l": "x"}}}),
        json!({"metadata": {"labels": {"m": "x"}}}),
        "metadata.labels.l"
    )]
    #[case(
        json!({"containers": [{"name": "a", "image": "one"}]}),
        json!({"containers": [{"name": "a", "image": "two"}]}),
        "containers[a].image"
    )]
    #[case(
        json!({"spec": {"ports": [{"port": 1, "protocol": "TCP", "targetPort": "http"}]}}),
        json!({"spec": {"ports": [{"port": 1, "protocol": "TCP", "targetPort": 9}]}}),
        "spec.ports[1/TCP].targetPort"
    )]
    #[case::selectors_are_one_value(
        json!({"spec": {"selector": {"a": "1"}}}),
        json!({"spec": {"selector": {"a": "1", "b": "2"}}}),
        "spec.selector"
    )]
    #[case::rules_are_one_value(
        json!({"spec": {"ingress": [{"from": ["a"]}]}}),
        json!({"spec": {"ingress": [{"from": ["a"]}, {"from": ["b"]}]}}),
        "spec.ingress"
    )]
    #[case::commands_are_one_value(
        json!({"containers": [{"name": "a", "command": ["sh", "x"]}]}),
        json!({"containers": [{"name": "a", "command": ["sh", "y"]}]}),
        "containers[a].command"
    )]
    fn an_edited_field_is_named(#[case] wish: Value, #[case] live: Value, #[case] path: &str) {
        assert_eq!(differences(&wish, &live), [path]);
    }

    #[test]
    fn an_entry_under_another_key_is_found_by_its_name() {
        let wish = json!({"spec": {"ports": [{"port": 1, "name": "a"}, {"port": 2, "name": "b"}]}});
        let live = json!({"spec": {"ports": [{"port": 3, "name": "other"}, {"port": 9, "name": "b"}, {"port": 1, "name": "a"}]}});
        assert_eq!(impostors(&wish, &live), [("/spec/ports/1".to_owned(), json!({"port": 2, "name": "b"}))]);
        let wish = json!({"containers": [{"name": "x", "ports": [{"containerPort": 1, "name": "a"}]}]});
        let live = json!({"containers": [{"name": "x", "ports": [{"containerPort": 5, "name": "a"}]}]});
        assert_eq!(impostors(&wish, &live)[0].0, "/containers/0/ports/0");
        assert_eq!(impostors(&wish, &wish), []);
    }

    #[test]
    fn the_list_of_differences_is_bounded() {
        let wish: Value =
            (0..100).map(|n| (n.to_string(), json!(1))).collect::<serde_json::Map<_, _>>().into();
        assert_eq!(differences(&wish, &json!({})).len(), MAX_NAMED);
    }
}
