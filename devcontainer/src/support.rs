//! The properties of the specification that this version does not support: none of them is ignored silently.

use serde_json::Value;

use crate::{Document, Error};

/// A property that has no effect yet, as one line for the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice(pub String);

/// Properties without which the container would not be the one that the file describes: (property, alternative).
const REFUSED: [(&str, &str); 2] = [
    ("dockerComposeFile", "name an \"image\" or a \"build\""),
    ("features", "install what they bring in a Dockerfile and name it in \"build\""),
];

/// Properties without which the container is correct, but something around it is missing.
const WITHOUT_EFFECT: [&str; 8] = [
    "appPort",
    "forwardPorts",
    "hostRequirements",
    "otherPortsAttributes",
    "overrideFeatureInstallOrder",
    "portsAttributes",
    "secrets",
    "shutdownAction",
];

impl Document {
    /// The properties that have no effect yet.
    ///
    /// # Errors
    /// The file has a property without which the container would not be the one that it describes.
    pub fn notices(&self) -> Result<Vec<Notice>, Error> {
        for (property, instead) in REFUSED {
            if self.value().get(property).is_some_and(is_set) {
                return Err(Error::Unsupported {
                    file: self.file().to_owned(),
                    place: self.place(property),
                    property: property.to_owned(),
                    instead: instead.to_owned(),
                });
            }
        }
        let set = WITHOUT_EFFECT.into_iter().filter(|property| self.value().get(property).is_some_and(is_set));
        let notice = |property| {
            Notice(format!(
                "{}:{}: {property} is not supported yet and has no effect",
                self.file(),
                self.place(property)
            ))
        };
        Ok(set.map(notice).collect())
    }
}

fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(members) => !members.is_empty(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notices(text: &str) -> Result<Vec<Notice>, Error> {
        Document::parse("d", text.as_bytes()).unwrap().notices()
    }

    #[test]
    fn properties_that_change_the_container_are_refused() {
        let error = notices("{\n \"features\": {\"x\": {}} }").unwrap_err().to_string();
        assert!(error.starts_with("d:2:14: features is not supported yet: "), "{error}");
        let error = notices(r#"{"dockerComposeFile": "c.yml"}"#).unwrap_err().to_string();
        assert!(error.starts_with("d:1:23: dockerComposeFile is not supported yet: "), "{error}");
    }

    #[test]
    fn other_properties_are_named_unless_empty() {
        assert_eq!(notices(r#"{"features": {}, "forwardPorts": [], "image": "x"}"#).unwrap(), []);
        let notices = notices(r#"{"image": "x", "forwardPorts": [80], "shutdownAction": "none"}"#).unwrap();
        assert_eq!(notices.len(), 2);
        assert_eq!(notices[0].0, "d:1:32: forwardPorts is not supported yet and has no effect");
    }
}
