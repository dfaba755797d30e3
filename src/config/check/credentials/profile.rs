//! Reads a profile of Alibaba's command line tool (`~/.aliyun/config.json`). The modes and fields
//! are those of the tool. The file is never written.

use std::borrow::Cow;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use serde::Deserialize;

use super::{MAX_CHAIN, SourceReader, ecs_role, role, variables};
use crate::config::check::ids::{KEY_FORM, access_key};
use crate::config::check::sts::OfProfile;
use crate::config::read::{Field, KeyLocation, Reader};
use crate::config::secrets::{is_read_only, json, one_line};
use crate::config::{
    AccountCredentials, AssumeRole, Credentials, CredentialsUri, LoadedFrom, Oidc, Role,
    SessionSource,
};
use crate::primitives::secret::{Secret, never_shown};

const NAME_FORM: &str = "the name of a profile, or { name = \"...\", file = \"path\" }";

/// What is wrong if the file is another one. serde's message would contain values.
const SHAPE: &str = "expected the file of Alibaba's command line tool: a JSON object with \
                     \"current\" and \"profiles\"";

/// Modes of the tool that Flowgate does not support, and what to do instead.
const UNSUPPORTED: [(&str, &str); 7] = [
    ("External", "run the command elsewhere and use file or uri"),
    ("CloudSSO", "its login is a person's: use a RAM role"),
    ("OAuth", "its login is a person's: use a RAM role"),
    ("RsaKeyPair", "use an access key or a RAM role"),
    (
        "RamRoleArnWithRoleName",
        "use ChainableRamRoleArn with a source profile of mode EcsRamRole",
    ),
    ("BearerToken", "CAMS takes signed calls only"),
    ("Anonymous", "CAMS takes signed calls only"),
];

/// The modes that Flowgate supports.
const MODES: &str = "AK, StsToken, RamRoleArn, EcsRamRole, OIDC, ChainableRamRoleArn or \
                     CredentialsURI";

/// The file. Other fields are the tool's own.
#[derive(Deserialize)]
pub(super) struct Profiles {
    #[serde(default)]
    current: String,
    profiles: Vec<Profile>,
}

/// One profile. The tool writes empty texts and zeros for what is not set.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Profile {
    name: String,
    mode: String,
    access_key_id: Option<Secret>,
    access_key_secret: Option<Secret>,
    sts_token: Option<Secret>,
    ram_role_arn: Option<String>,
    ram_session_name: Option<String>,
    expired_seconds: Option<u64>,
    policy: Option<String>,
    external_id: Option<String>,
    sts_region: Option<String>,
    sts_endpoint: Option<String>,
    enable_vpc: Option<bool>,
    ram_role_name: Option<String>,
    oidc_provider_arn: Option<String>,
    oidc_token_file: Option<String>,
    source_profile: Option<String>,
    credentials_uri: Option<Secret>,
}

never_shown!(Profiles, Profile);

/// The file of the profiles.
struct ProfilesFile {
    path: PathBuf,
    /// The file in a mistake. A path that was written, or is the value of a variable, is not
    /// repeated: it may be a misplaced secret.
    shown: String,
}

/// Why a profile is none: what is expected of it, or `None` if that is recorded already.
type Refusal = Option<String>;

// === impl SourceReader ===

impl<'a> SourceReader<'a> {
    /// Reads `profile`.
    pub(super) fn profile(&self, key: Field<'a>) -> Option<AccountCredentials> {
        let place = key.place.clone();
        let (name, file) = match key.into_table() {
            Ok(mut section) => {
                let name = section.key("name").optional(profile_name);
                let file = section.key("file").given(|key| {
                    let path = super::path(&key)?;
                    Some(key.resolve(&path))
                });
                section.done();
                (name?, file?)
            }
            Err(key) => (Some(profile_name(&key)?), None),
        };
        self.profile_of(&place, name, file)
    }

    /// Reads a profile. What is not given comes from the variables and the file.
    pub(super) fn profile_of(
        &self,
        place: &KeyLocation,
        name: Option<String>,
        file: Option<PathBuf>,
    ) -> Option<AccountCredentials> {
        if self.profiles_are_disabled() {
            let name = variables::CLI_PROFILE_DISABLED;
            self.reader
                .mistake(place, format!("expected another source: {name} is true"));
            return None;
        }
        let found = match file {
            Some(file) => Some(ProfilesFile::of_key(file)),
            None => ProfilesFile::of_variables(self.reader),
        };
        let Some(ProfilesFile { path, shown }) = found else {
            let name = variables::CONFIG_FILE;
            self.reader.mistake(
                place,
                format!("expected the path of the file: neither file, {name} nor HOME is set"),
            );
            return None;
        };
        let profiles = self.profiles(&path, place);
        let found = match &*profiles {
            Ok(profiles) => self.source_of(profiles, name.as_deref()),
            Err(expectation) => Err(Some(format!("{shown}: {expectation}"))),
        };
        found
            .map_err(|expectation| {
                if let Some(expectation) = expectation {
                    self.reader.mistake(place, expectation);
                }
            })
            .ok()
    }

    /// The content of the file, which is read once.
    fn profiles(&self, file: &Path, place: &KeyLocation) -> Rc<Result<Profiles, String>> {
        if let Some(known) = self.profiles.borrow().get(file) {
            return Rc::clone(known);
        }
        self.reader.watch(file);
        let profiles: Rc<Result<Profiles, String>> = Rc::new(json(file, SHAPE));
        if let Ok(found) = &*profiles {
            warn_of_readers(self.reader, place, file, found);
        }
        self.profiles
            .borrow_mut()
            .insert(file.to_owned(), Rc::clone(&profiles));
        profiles
    }

    fn source_of(
        &self,
        profiles: &Profiles,
        name: Option<&str>,
    ) -> Result<AccountCredentials, Refusal> {
        let variable = self.reader.environment.get(variables::PROFILE);
        let name = name.or(variable).unwrap_or(&profiles.current);
        *self.profile.borrow_mut() = Some(name.to_owned());
        let chain = profiles.chain(name)?;
        let mut found: Option<AccountCredentials> = None;
        // The chain ends at the profile that needs no other one.
        for profile in chain.iter().rev() {
            let source = match found {
                None => self.of_mode(profile),
                Some(from) => self.assumed(profile, from).map(AccountCredentials::Session),
            };
            found = Some(source.map_err(|refusal| {
                refusal.map(|expectation| {
                    let name = shown(&profile.name);
                    format!("profile {name} of the file: {expectation}")
                })
            })?);
        }
        found.ok_or_else(|| Some("expected a profile".to_owned()))
    }

    /// The source of a profile that needs no other profile.
    fn of_mode(&self, profile: &Profile) -> Result<AccountCredentials, Refusal> {
        let session = match profile.mode.as_str() {
            "AK" => return Ok(profile.access_key(None)?),
            "StsToken" => {
                let token = given(&profile.sts_token).ok_or_else(|| missing("sts_token"))?;
                return Ok(profile.access_key(Some(token))?);
            }
            "RamRoleArn" => {
                let from = profile.access_key(given(&profile.sts_token))?;
                self.assumed(profile, from)?
            }
            "EcsRamRole" => self.ecs(profile)?,
            "OIDC" => self.oidc_of(profile)?,
            "CredentialsURI" => {
                let uri = given(&profile.credentials_uri);
                let uri = uri.ok_or_else(|| missing("credentials_uri"))?;
                let uri = CredentialsUri::parse(uri.expose());
                SessionSource::Uri(uri.map_err(|form| wrong("credentials_uri", form))?)
            }
            mode => return Err(Some(unsupported(mode))),
        };
        Ok(AccountCredentials::Session(session))
    }

    fn ecs(&self, profile: &Profile) -> Result<SessionSource, Refusal> {
        if self.metadata_is_disabled() {
            return Err(Some(ecs_role::DISABLED.to_owned()));
        }
        let name = profile.ram_role_name.as_deref().unwrap_or_default();
        let source = ecs_role::with_role(name)
            .ok_or_else(|| wrong("ram_role_name", &expected(ecs_role::ROLE_FORM)))?;
        self.warn_of_version(source.allow_v1);
        Ok(SessionSource::EcsRole(source))
    }

    fn oidc_of(&self, profile: &Profile) -> Result<SessionSource, Refusal> {
        let provider_arn = checked(
            "oidc_provider_arn",
            text(&profile.oidc_provider_arn),
            role::PROVIDER_FORM,
            role::provider_arn,
        )?;
        let token_file = text(&profile.oidc_token_file).map(|text| {
            let path = super::path_of(text);
            path.ok_or_else(|| wrong("oidc_token_file", &expected(super::PATH_FORM)))
        });
        let token_file = token_file.transpose()?;
        Ok(SessionSource::Oidc(Oidc {
            provider_arn: provider_arn.ok_or_else(|| missing("oidc_provider_arn"))?,
            token_file: token_file.ok_or_else(|| missing("oidc_token_file"))?,
            role: self.role_of(profile)?,
        }))
    }

    fn assumed(
        &self,
        profile: &Profile,
        from: AccountCredentials,
    ) -> Result<SessionSource, Refusal> {
        let external_id = checked(
            "external_id",
            text(&profile.external_id),
            role::EXTERNAL_ID_FORM,
            role::external_id,
        )?;
        Ok(SessionSource::AssumeRole(AssumeRole {
            from: Box::new(from),
            external_id,
            role: self.role_of(profile)?,
        }))
    }

    fn role_of(&self, profile: &Profile) -> Result<Role, Refusal> {
        let arn = checked(
            "ram_role_arn",
            text(&profile.ram_role_arn),
            role::ROLE_FORM,
            role::role_arn,
        )?;
        let name = text(&profile.ram_session_name);
        let name = name.or_else(|| self.reader.environment.get(variables::ROLE_SESSION_NAME));
        let name = checked(
            "ram_session_name",
            name,
            role::SESSION_NAME_FORM,
            role::session_name,
        )?;
        let policy = checked(
            "policy",
            text(&profile.policy),
            role::POLICY_FORM,
            role::policy,
        )?;
        let sts = self.sts.of_profile(
            &OfProfile {
                endpoint: text(&profile.sts_endpoint),
                region: text(&profile.sts_region),
                vpc: profile.enable_vpc.unwrap_or(false),
            },
            self.reader,
        )?;
        Ok(Role {
            arn: arn.ok_or_else(|| missing("ram_role_arn"))?,
            session_name: name.unwrap_or_else(|| self.default_session_name()),
            policy,
            duration: profile.duration()?,
            sts: sts.ok_or(None)?,
        })
    }
}

// === impl ProfilesFile ===

impl ProfilesFile {
    fn of_key(path: PathBuf) -> Self {
        Self {
            path,
            shown: "the profiles' file that the key file names".to_owned(),
        }
    }

    /// The default.
    fn of_variables(reader: &Reader) -> Option<Self> {
        let name = variables::CONFIG_FILE;
        if let Some(path) = reader.environment.get(name) {
            return Some(Self {
                path: path.into(),
                shown: format!("the profiles' file, which {name} names"),
            });
        }
        let path = Path::new(reader.environment.get("HOME")?).join(".aliyun/config.json");
        let text = path.display().to_string();
        Some(Self {
            shown: format!("the profiles' file {} (by HOME)", shown(&text)),
            path,
        })
    }
}

// === impl Profiles ===

impl Profiles {
    /// The profile, and those that it names as its source, to the one that needs none.
    fn chain(&self, name: &str) -> Result<Vec<&Profile>, String> {
        let mut chain = vec![self.named(name).ok_or_else(|| {
            "no profile of this name is in the file: expected the name of one".to_owned()
        })?];
        while let Some(last) = chain.last()
            && last.mode == "ChainableRamRoleArn"
        {
            let of = shown(&last.name);
            let next = text(&last.source_profile)
                .ok_or_else(|| format!("profile {of} of the file: source_profile is missing"))?;
            let next = self.named(next).ok_or_else(|| {
                format!("profile {of} of the file: source_profile is none of its profiles")
            })?;
            if let Some(start) = chain.iter().position(|it| std::ptr::eq(*it, next)) {
                return Err(of_loop(&chain[start..]));
            }
            chain.push(next);
        }
        if chain.len() > MAX_CHAIN {
            return Err(format!("{} (source_profile)", super::too_long()));
        }
        Ok(chain)
    }

    fn named(&self, name: &str) -> Option<&Profile> {
        self.profiles.iter().find(|profile| profile.name == name)
    }
}

/// Names the profiles of a loop, or the first of many.
fn of_loop(profiles: &[&Profile]) -> String {
    let names = profiles.iter().map(|profile| shown(&profile.name));
    let mut names: Vec<_> = names.take(2 * MAX_CHAIN).collect();
    if names.len() < profiles.len() {
        names.push("...".into());
    }
    names.extend(profiles.first().map(|first| shown(&first.name)));
    format!(
        "the profiles of the file are each other's source_profile: {}",
        names.join(" -> ")
    )
}

// === impl Profile ===

impl Profile {
    fn access_key(&self, token: Option<&Secret>) -> Result<AccountCredentials, String> {
        let id = given(&self.access_key_id).ok_or("access_key_id is missing")?;
        let secret = given(&self.access_key_secret).ok_or("access_key_secret is missing")?;
        let token = token.map(|token| one_line(token.expose())).transpose();
        let credentials = Credentials {
            access_key_id: access_key(id.expose())
                .ok_or_else(|| format!("access_key_id: expected {KEY_FORM}"))?,
            secret: one_line(secret.expose())
                .map_err(|reason| format!("access_key_secret: {reason}"))?,
            security_token: token.map_err(|reason| format!("sts_token: {reason}"))?,
            expires: None,
        };
        let from = LoadedFrom::Profile(self.name.clone());
        Ok(AccountCredentials::Loaded(credentials, from))
    }

    fn duration(&self) -> Result<Option<Duration>, String> {
        let Some(seconds) = self.expired_seconds.filter(|seconds| *seconds > 0) else {
            return Ok(None);
        };
        let duration = Duration::from_secs(seconds);
        if role::DURATION.contains(&duration) {
            return Ok(Some(duration));
        }
        let (least, most) = (role::DURATION.start(), role::DURATION.end());
        Err(format!(
            "expired_seconds: expected a number from {} to {}",
            least.as_secs(),
            most.as_secs()
        ))
    }

    /// Whether the file holds a secret that does not expire.
    fn has_long_lived_secret(&self) -> bool {
        given(&self.access_key_secret).is_some() && given(&self.sts_token).is_none()
    }
}

fn profile_name(key: &Field<'_>) -> Option<String> {
    key.text(NAME_FORM, |text| {
        (!text.is_empty()).then(|| text.to_owned())
    })
}

/// Warns if other users can read a secret that does not expire, or can replace the file: it decides
/// what is asked for credentials. The tool writes its file with mode
/// 0600; a file of another user or on a read-only mount, such as a secret of Kubernetes, has a mode
/// that Flowgate's user did not choose.
fn warn_of_readers(reader: &Reader, place: &KeyLocation, file: &Path, profiles: &Profiles) {
    let Ok(metadata) = std::fs::metadata(file) else {
        return;
    };
    let is_ours = metadata.uid() == rustix::process::geteuid().as_raw();
    let is_writable = metadata.mode() & 0o020 != 0;
    let is_readable = metadata.mode() & 0o044 != 0
        && profiles.profiles.iter().any(Profile::has_long_lived_secret);
    if is_ours && (is_writable || is_readable) && !is_read_only(file) {
        let done = if is_writable {
            "other users can write to the profiles' file"
        } else {
            "other users can read the secrets in the profiles' file"
        };
        let path = if place.path.is_empty() {
            variables::PROFILE
        } else {
            &place.path
        };
        reader.warn(format!("{path}: {done}: set its mode to 0600"));
    }
}

/// Reads a text of a profile, if it has one.
fn checked(
    name: &str,
    text: Option<&str>,
    form: &str,
    read: impl FnOnce(&str) -> Option<String>,
) -> Result<Option<String>, Refusal> {
    let Some(text) = text else { return Ok(None) };
    read(text)
        .map(Some)
        .ok_or_else(|| wrong(name, &expected(form)))
}

fn text(field: &Option<String>) -> Option<&str> {
    field.as_deref().filter(|text| !text.is_empty())
}

fn given(field: &Option<Secret>) -> Option<&Secret> {
    field.as_ref().filter(|text| !text.expose().is_empty())
}

fn expected(form: &str) -> String {
    format!("expected {form}")
}

fn missing(name: &str) -> Refusal {
    Some(format!("{name} is missing"))
}

fn wrong(name: &str, expectation: &str) -> Refusal {
    Some(format!("{name}: {expectation}"))
}

fn unsupported(mode: &str) -> String {
    let known = UNSUPPORTED.iter().find(|(name, _)| *name == mode);
    match known {
        Some((name, instead)) => format!("mode {name} is not supported: {instead}"),
        None => format!("mode: expected {MODES}"),
    }
}

/// A profile's name without what could forge log lines.
fn shown(name: &str) -> Cow<'_, str> {
    if name.contains(char::is_control) {
        name.escape_debug().to_string().into()
    } else {
        name.into()
    }
}
