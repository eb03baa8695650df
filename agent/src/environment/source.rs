//! The image of a container: pulled or built, with one more layer for the remote user's ids if needed.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use garret_api::{Code, Problem};
use garret_devcontainer::{Build, Merged, Source};

use super::image::{full_name, pull_failed};
use super::inspect::Image;
use super::journal::{Output, StepFailed};
use super::names;
use super::plan::{self, BuildPlan};
use super::read::{Read, WORKSPACE};
use super::remote::USER_FILES;
use super::renumber::{Renumbered, renumber};
use super::run::Run;
use crate::users::Users;

/// The image that devcontainer.json asks for, and the name to run it by.
pub(super) async fn image(run: &Run, read: &Read) -> Result<(String, Image), StepFailed> {
    let source = read.resolved.config.source(read.resolved.file());
    match source {
        Err(error) => Err(StepFailed {
            step: "read devcontainer.json".into(),
            problem: Problem::new(Code::Invalid, error.to_string()),
        }),
        Ok(Source::Image(image)) => pulled(run, image.trim()).await,
        Ok(Source::Dockerfile { dockerfile, context, build }) => {
            run.journal
                .step("build image", async |output| built(run, read, &dockerfile, &context, &build, output).await)
                .await
        }
    }
}

/// A local image is used as it is, under the name as written (the guest's own images) or under the full name.
async fn pulled(run: &Run, image: &str) -> Result<(String, Image), StepFailed> {
    let full = full_name(image);
    if !run.spec.rebuild {
        let find = async || -> Result<_, Problem> { Ok(run.podman.image(&full).await?) };
        if let Some(found) = run.journal.quiet_step("find image", find).await? {
            return Ok((full, found));
        }
    }
    run.journal
        .step("pull image", async |output| {
            // The guest's own images have no registry.
            if full.starts_with("localhost/") {
                return found(run, &full).await;
            }
            let pull = run.podman.stream(["pull", &full], |bytes| output.bytes(bytes)).await;
            pull.map_err(|failure| failure.problem(Code::ImageUnavailable, || pull_failed(&full, &failure.stderr)))?;
            found(run, &full).await
        })
        .await
}

async fn found(run: &Run, name: &str) -> Result<(String, Image), Problem> {
    let image = run.podman.image(name).await?;
    let image = image
        .ok_or_else(|| Problem::new(Code::ImageUnavailable, format!("there is no image {name} in the machine")))?;
    Ok((name.to_owned(), image))
}

async fn built(
    run: &Run,
    read: &Read,
    dockerfile: &str,
    context: &str,
    build: &Build,
    output: &Output,
) -> Result<(String, Image), Problem> {
    let workspace = run.workspace();
    let dockerfile = inside(&workspace, &read.folder, dockerfile, "build.dockerfile")?;
    let context = inside(&workspace, &read.folder, context, "build.context")?;
    let (file, folder) = (dockerfile.clone(), context.clone());
    let (is_file, is_folder) = WORKSPACE.run(move || (file.is_file(), folder.is_dir())).await?;
    if !is_file {
        let message =
            format!("build.dockerfile: there is no file {:?} in the workspace", shown(&workspace, &dockerfile));
        return Err(Problem::new(Code::Invalid, message));
    }
    if !is_folder {
        let message = format!("build.context: there is no folder {:?} in the workspace", shown(&workspace, &context));
        return Err(Problem::new(Code::Invalid, message));
    }
    let mut env = run.facts.env.clone();
    env.retain(|name, _| !run.facts.engine_env.contains_key(name));
    let variables = plan::variables(&build.args);
    let arg_file = run.secret_file(&variables.file)?;
    let args = plan::build_args(&BuildPlan {
        id: &run.entry.id,
        dockerfile: &dockerfile.to_string_lossy(),
        context: &context.to_string_lossy(),
        build,
        env: &env,
        arg_file: &arg_file.path().to_string_lossy(),
        no_cache: run.spec.rebuild,
    });
    run.build(args, variables.inherited, output).await.map_err(|failure| {
        failure.problem(Code::BuildFailed, || {
            let dockerfile = shown(&workspace, &dockerfile);
            format!("the image could not be built from {dockerfile}: {failure}; its output is above")
        })
    })?;
    found(run, &names::built_image(&run.entry.id)).await
}

/// A path relative to `folder` that stays in the workspace.
fn inside(workspace: &Path, folder: &Path, path: &str, property: &str) -> Result<PathBuf, Problem> {
    let mut whole = PathBuf::new();
    for part in folder.join(path).components() {
        match part {
            Component::ParentDir => {
                whole.pop();
            }
            Component::CurDir => {}
            part => whole.push(part),
        }
    }
    if whole.starts_with(workspace) {
        return Ok(whole);
    }
    Err(Problem::new(Code::Invalid, format!("{property}: {path:?} is outside the workspace: move it inside")))
}

fn shown(workspace: &Path, path: &Path) -> String {
    path.strip_prefix(workspace).unwrap_or(path).display().to_string()
}

/// The image, or a new image on top of it in which the remote user has the ids of the workspace's files.
pub(super) async fn with_owner_ids(
    run: &Run,
    user: &str,
    merged: &Merged,
    name: String,
    image: &Image,
) -> Result<String, StepFailed> {
    if merged.update_remote_user_uid == Some(false) {
        return Ok(name);
    }
    let layers: Vec<PathBuf> = image.layers().into_iter().map(Path::to_owned).collect();
    let reading = USER_FILES.run(move || user_files(&layers)).await;
    let (passwd, group) = run.journal.quiet_step("adapt user ids", async || reading).await?;
    let Some(renumbered) = renumber(&passwd, &group, user) else { return Ok(name) };
    run.journal
        .step("adapt user ids", async |output| {
            let internal = |error| Problem::new(Code::Internal, format!("cannot write an image's layer: {error}"));
            let folder = tempfile::tempdir_in(&run.dirs.run).map_err(internal)?;
            write_layer(folder.path(), &name, &image.config.user, &renumbered).map_err(internal)?;
            let tag = names::renumbered_image(&run.entry.id);
            let context = folder.path().to_string_lossy();
            let label = names::label(&run.entry.id);
            let args = ["build", "--format", "docker", "--tag", &tag, "--label", &label, &context];
            run.build(args.map(str::to_owned).into(), BTreeMap::new(), output).await.map_err(|failure| {
                failure.problem(Code::BuildFailed, || {
                    let to_do = "set \"updateRemoteUserUID\" to false to continue without that";
                    format!("user {user} could not be given the workspace's owner: {failure}; {to_do}")
                })
            })?;
            Ok(tag)
        })
        .await
}

/// The image's user and group file, each from the topmost layer that has it.
fn user_files(layers: &[PathBuf]) -> (String, String) {
    let mut files = (None, None);
    for users in layers.iter().filter_map(|layer| Users::load(layer).ok()) {
        let (passwd, group) = users.texts();
        files.0 = files.0.or_else(|| Some(passwd.to_owned()).filter(|text| !text.is_empty()));
        files.1 = files.1.or_else(|| Some(group.to_owned()).filter(|text| !text.is_empty()));
    }
    (files.0.unwrap_or_default(), files.1.unwrap_or_default())
}

/// Arguments: pairs of an owner and a folder.
const CHOWN_HOMES: &str = "while [ $# -gt 1 ]; do if [ -d \"$2\" ]; then chown -hR \"$1\" \"$2\"; fi; shift 2; done";

fn write_layer(folder: &Path, image: &str, image_user: &str, renumbered: &Renumbered) -> std::io::Result<()> {
    std::fs::write(folder.join("passwd"), &renumbered.passwd)?;
    std::fs::write(folder.join("group"), &renumbered.group)?;
    std::fs::write(folder.join("Dockerfile"), layer(image, image_user, &renumbered.homes))
}

fn layer(image: &str, image_user: &str, homes: &[(String, String)]) -> String {
    let mut text = format!("FROM {image}\nUSER root\nCOPY --chown=0:0 --chmod=0644 passwd group /etc/\n");
    // The array form: a folder's name is not interpreted by a shell.
    let mut run = ["/bin/sh", "-c", CHOWN_HOMES, "-"].map(str::to_owned).to_vec();
    run.extend(homes.iter().flat_map(|(home, owner)| [owner.clone(), home.clone()]));
    if !homes.is_empty() {
        text += &format!("RUN {}\n", serde_json::json!(run));
    }
    if !image_user.is_empty() {
        text += &format!("USER {image_user}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_in_the_workspace() {
        let at = |path| inside(Path::new("/w/p"), Path::new("/w/p/.devcontainer"), path, "build.context");
        assert_eq!(at("..").unwrap(), Path::new("/w/p"));
        assert_eq!(at("./a/../b").unwrap(), Path::new("/w/p/.devcontainer/b"));
        for path in ["../..", "../../p2", "/etc", "../../../../../.."] {
            assert!(at(path).unwrap_err().detail.contains("outside the workspace"), "{path}");
        }
    }

    #[test]
    fn the_layer_ends_with_the_images_own_user() {
        let text = layer("img", "app", &[("/home/a b".into(), "1000:1000".into())]);
        assert!(text.starts_with("FROM img\nUSER root\n") && text.ends_with("\nUSER app\n"), "{text}");
        assert!(text.contains(r#","-","1000:1000","/home/a b"]"#), "{text}");
        assert!(layer("img", "", &[]).ends_with("/etc/\n"));
    }
}
