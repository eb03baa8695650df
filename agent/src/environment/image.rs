//! Names of images, and the error message of a failed pull.

/// An image's full name, as Docker reads it: `debian` is `docker.io/library/debian`. Names of the guest's own images
/// (`localhost/…`) and ids do not change.
pub(super) fn full_name(image: &str) -> String {
    match image.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => image.to_owned(),
        Some(_) => format!("docker.io/{image}"),
        None => format!("docker.io/library/{image}"),
    }
}

/// The registry of a full name.
pub(super) fn registry(image: &str) -> &str {
    image.split_once('/').map_or("docker.io", |(registry, _)| registry)
}

/// A name without its tag and digest, as `podman build --cache-from` needs it.
pub(super) fn repository(image: &str) -> &str {
    let image = image.split_once('@').map_or(image, |(name, _)| name);
    match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => image,
    }
}

/// The reason why `image` could not be pulled, on one line: the image, its registry, the engine's message and what to
/// do.
pub(super) fn pull_failed(image: &str, engine_says: &str) -> String {
    let registry = registry(image);
    let says = |needles: &[&str]| {
        let lower = engine_says.to_lowercase();
        needles.iter().any(|needle| lower.contains(needle))
    };
    let (what, to_do) = if says(&["manifest unknown", "name unknown", "not found", "repository name not known"]) {
        ("does not have it", "check its name and tag in devcontainer.json")
    } else if says(&["unauthorized", "denied", "authentication required", "invalid username"]) {
        ("refuses access to it", "check its name, and whether it is public")
    } else if says(&["x509", "certificate"]) {
        ("has a certificate that no known authority signed", "give garret the registry's certificate authority")
    } else if says(&["no such host", "server misbehaving", "connection refused", "no route", "timeout", "unreachable"])
    {
        ("cannot be reached", "check the machine's network, or set a mirror for it in garret's configuration")
    } else {
        ("did not return it", "see the output above")
    };
    let reason = engine_says.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no reason given");
    let reason = reason.strip_prefix("Error: ").unwrap_or(reason);
    format!("image {image}: registry {registry} {what}: {to_do} ({reason})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_docker_reads_them() {
        for (image, full, from) in [
            ("debian", "docker.io/library/debian", "docker.io"),
            ("debian:12", "docker.io/library/debian:12", "docker.io"),
            ("me/app:1", "docker.io/me/app:1", "docker.io"),
            (
                "mcr.microsoft.com/devcontainers/base:debian",
                "mcr.microsoft.com/devcontainers/base:debian",
                "mcr.microsoft.com",
            ),
            ("localhost:5000/x", "localhost:5000/x", "localhost:5000"),
            ("localhost/x", "localhost/x", "localhost"),
        ] {
            assert_eq!(full_name(image), full);
            assert_eq!(registry(full), from);
        }
    }

    #[test]
    fn repositories_have_no_tag() {
        for (image, repository) in [
            ("a/b:1", "a/b"),
            ("a/b", "a/b"),
            ("h:5000/b", "h:5000/b"),
            ("h:5000/b:1", "h:5000/b"),
            ("b:1@sha256:00", "b"),
        ] {
            assert_eq!(super::repository(image), repository);
        }
    }

    #[test]
    fn one_line_with_a_reason() {
        for (says, expected) in [
            (
                "x\nError: initializing source docker://a: reading manifest 9 in docker.io/a: manifest unknown\n",
                "does not have it",
            ),
            ("Error: ... pinging container registry x: dial tcp: lookup x: no such host", "cannot be reached"),
            ("Error: ... requested access to the resource is denied", "refuses access"),
            ("Error: ... tls: failed to verify certificate: x509: ...", "certificate"),
            ("", "did not return it"),
        ] {
            let line = pull_failed("docker.io/a:9", says);
            assert!(line.starts_with("image docker.io/a:9: registry docker.io ") && line.contains(expected), "{line}");
            assert!(!line.contains('\n'));
        }
    }
}
