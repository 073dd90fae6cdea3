//! Owns how dialogues in the format of the Schema-Guided Dialogue dataset are read: an array of dialogues with turns,
//! each with a speaker, an utterance and frames. It interprets nothing. Rule kept: what a conversation needs (an id, turns, speakers,
//! utterances) must be there and is named when it is not; everything else may be missing.

use std::{collections::BTreeMap, collections::BTreeSet, fmt, fs, io, path::Path};

use serde_json::{Map, Value};

/// The dialogues that the demo plays without `--input`.
const BUILT_IN: &str = include_str!("../dialogues.json");

/// A file above this is no file of dialogues (the dataset's largest is a tenth of it).
const FILE_BYTES_MAX: u64 = 256 << 20;

/// A person's message is cut to this; it keeps a conversation's payloads far below what the mesh takes.
const UTTERANCE_BYTES_MAX: usize = 8 << 10;

/// Why a file of dialogues cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("{file} cannot be read")]
    Read { file: String, source: io::Error },
    /// The file is larger than any file of dialogues.
    #[error("{file} has {bytes} bytes; a file of dialogues has at most {FILE_BYTES_MAX}")]
    TooLarge { file: String, bytes: u64 },
    /// The file is not JSON.
    #[error("{file} is not JSON")]
    Json { file: String, source: serde_json::Error },
    /// The file is JSON, but not of this format.
    #[error("{file}: {place}: expected {expected}, found {found}")]
    Format { file: String, place: String, expected: &'static str, found: String },
}

/// One conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dialogue {
    /// Unique within its file.
    pub id: String,
    pub services: Vec<String>,
    pub turns: Vec<Turn>,
}

/// One message of one side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    pub speaker: Speaker,
    pub utterance: String,
    pub frames: Vec<Frame>,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaker {
    /// The person.
    User,
    /// The assistant of the recorded dialogue.
    System,
}

/// What the dataset notes about one turn, per service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frame {
    pub service: String,
    pub actions: Vec<Action>,
    /// The person's intent as the dataset sees it; absent on turns of the system.
    pub active_intent: Option<String>,
    pub slot_values: BTreeMap<String, Vec<String>>,
    pub called: Option<String>,
    /// What the service found, each as field and value.
    pub results: Vec<BTreeMap<String, String>>,
}

/// A dialogue act such as `INFORM` of `area`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Action {
    pub act: String,
    pub slot: String,
}

/// A person's message with the message that it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Said<'a> {
    pub text: &'a str,
    pub in_reply_to: Option<&'a str>,
    pub turn: &'a Turn,
}

impl Dialogue {
    /// The person's messages in order.
    pub fn said(&self) -> impl Iterator<Item = Said<'_>> {
        self.turns.iter().enumerate().filter(|(_, turn)| turn.speaker == Speaker::User).map(|(at, turn)| {
            let before = at.checked_sub(1).and_then(|before| self.turns.get(before));
            let in_reply_to = before.filter(|turn| turn.speaker == Speaker::System);
            Said { text: &turn.utterance, in_reply_to: in_reply_to.map(|turn| turn.utterance.as_str()), turn }
        })
    }

    /// All results of all service calls of this dialogue.
    pub fn results(&self) -> impl Iterator<Item = &BTreeMap<String, String>> {
        self.turns.iter().flat_map(|turn| &turn.frames).flat_map(|frame| &frame.results)
    }
}

/// The dialogues that come with the program.
pub fn built_in() -> Vec<Dialogue> {
    parse("the built-in dialogues", BUILT_IN)
        .expect("the built-in dialogues are of the format: a test reads them")
}

/// Reads a file of dialogues.
///
/// # Errors
/// Names the file and, where its content is at fault, the dialogue and the field.
pub fn read(path: &Path) -> Result<Vec<Dialogue>, Error> {
    let file = path.display().to_string();
    let failed = |source| Error::Read { file: file.clone(), source };
    let bytes = fs::metadata(path).map_err(failed)?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(Error::TooLarge { file, bytes });
    }
    let text = fs::read_to_string(path).map_err(failed)?;
    parse(&file, &text)
}

/// Reads dialogues from `text`; `file` is named in errors.
///
/// # Errors
/// As [`read`].
pub fn parse(file: &str, text: &str) -> Result<Vec<Dialogue>, Error> {
    let value: Value =
        serde_json::from_str(text).map_err(|source| Error::Json { file: file.to_owned(), source })?;
    let at = Place { file, path: "the file".to_owned() };
    let entries = at.array(&value)?;
    if entries.is_empty() {
        return Err(at.error("at least one dialogue", "an empty array".to_owned()));
    }
    let mut ids = BTreeSet::new();
    let mut dialogues = Vec::with_capacity(entries.len());
    for (index, entry) in entries.iter().enumerate() {
        let mut dialogue = dialogue(file, index, entry)?;
        if !ids.insert(dialogue.id.clone()) {
            dialogue.id = format!("{}#{index}", dialogue.id);
            ids.insert(dialogue.id.clone());
        }
        dialogues.push(dialogue);
    }
    Ok(dialogues)
}

fn dialogue(file: &str, index: usize, entry: &Value) -> Result<Dialogue, Error> {
    let at = Place { file, path: format!("dialogue [{index}]") };
    let fields = at.object(entry)?;
    let id = at.field("dialogue_id").text(fields.get("dialogue_id"))?;
    let at = Place { file, path: format!("dialogue \"{id}\"") };
    let services = at.field("services").texts(fields.get("services"))?;
    let turns_at = at.field("turns");
    let Some(turns) = fields.get("turns") else {
        return Err(turns_at.error("an array of turns", "nothing".to_owned()));
    };
    let turns = turns_at.array(turns)?.iter().enumerate();
    let turns = turns.map(|(number, value)| turn(&turns_at.item(number), value)).collect::<Result<_, _>>()?;
    Ok(Dialogue { id, services, turns })
}

fn turn(at: &Place<'_>, value: &Value) -> Result<Turn, Error> {
    let fields = at.object(value)?;
    let speaker = at.field("speaker").text(fields.get("speaker"))?;
    let speaker = match speaker.to_ascii_uppercase().as_str() {
        "USER" => Speaker::User,
        "SYSTEM" => Speaker::System,
        _ => return Err(at.field("speaker").error("USER or SYSTEM", format!("{speaker:?}"))),
    };
    let mut utterance = at.field("utterance").text(fields.get("utterance"))?;
    utterance.truncate(utterance.floor_char_boundary(UTTERANCE_BYTES_MAX));
    let frames_at = at.field("frames");
    let frames = frames_at.optional_array(fields.get("frames"))?.iter().enumerate();
    let frames =
        frames.map(|(number, value)| frame(&frames_at.item(number), value)).collect::<Result<_, _>>()?;
    Ok(Turn { speaker, utterance, frames })
}

fn frame(at: &Place<'_>, value: &Value) -> Result<Frame, Error> {
    let fields = at.object(value)?;
    let mut frame =
        Frame { service: at.field("service").optional_text(fields.get("service"))?, ..Frame::default() };
    let actions_at = at.field("actions");
    for (number, action) in actions_at.optional_array(fields.get("actions"))?.iter().enumerate() {
        let at = actions_at.item(number);
        let action = at.object(action)?;
        frame.actions.push(Action {
            act: at.field("act").optional_text(action.get("act"))?,
            slot: at.field("slot").optional_text(action.get("slot"))?,
        });
    }
    if let Some(state) = fields.get("state") {
        let at = at.field("state");
        let state = at.object(state)?;
        let intent = at.field("active_intent").optional_text(state.get("active_intent"))?;
        frame.active_intent = Some(intent).filter(|intent| !intent.is_empty());
        if let Some(values) = state.get("slot_values") {
            let at = at.field("slot_values");
            for (slot, values) in at.object(values)? {
                frame.slot_values.insert(slot.clone(), at.field(slot).texts(Some(values))?);
            }
        }
    }
    if let Some(call) = fields.get("service_call") {
        let at = at.field("service_call");
        let method = at.field("method").optional_text(at.object(call)?.get("method"))?;
        frame.called = Some(method).filter(|method| !method.is_empty());
    }
    let results_at = at.field("service_results");
    for (number, result) in results_at.optional_array(fields.get("service_results"))?.iter().enumerate() {
        let fields = results_at.item(number).object(result)?.iter();
        frame.results.push(fields.map(|(field, value)| (field.clone(), plain(value))).collect());
    }
    Ok(frame)
}

/// A value as text: numbers and booleans of hand-written files are as good as quoted ones.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Where in a file a value stands, for errors.
#[derive(Clone)]
struct Place<'a> {
    file: &'a str,
    path: String,
}

impl Place<'_> {
    fn field(&self, name: &str) -> Self {
        let path = if self.path.ends_with('"') {
            format!("{}: {name}", self.path)
        } else {
            format!("{}.{name}", self.path)
        };
        Self { file: self.file, path }
    }

    fn item(&self, index: usize) -> Self {
        Self { file: self.file, path: format!("{}[{index}]", self.path) }
    }

    fn error(&self, expected: &'static str, found: String) -> Error {
        Error::Format { file: self.file.to_owned(), place: self.path.clone(), expected, found }
    }

    fn array<'v>(&self, value: &'v Value) -> Result<&'v [Value], Error> {
        value.as_array().map(Vec::as_slice).ok_or_else(|| self.error("an array", Found(value).to_string()))
    }

    fn object<'v>(&self, value: &'v Value) -> Result<&'v Map<String, Value>, Error> {
        value.as_object().ok_or_else(|| self.error("an object", Found(value).to_string()))
    }

    fn text(&self, value: Option<&Value>) -> Result<String, Error> {
        match value {
            None => Err(self.error("a text", "nothing".to_owned())),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => Err(self.error("a text", Found(other).to_string())),
        }
    }

    fn optional_text(&self, value: Option<&Value>) -> Result<String, Error> {
        value
            .filter(|value| !value.is_null())
            .map_or_else(|| Ok(String::new()), |value| self.text(Some(value)))
    }

    fn optional_array<'v>(&self, value: Option<&'v Value>) -> Result<&'v [Value], Error> {
        value.filter(|value| !value.is_null()).map_or(Ok(&[]), |value| self.array(value))
    }

    fn texts(&self, value: Option<&Value>) -> Result<Vec<String>, Error> {
        let values = self.optional_array(value)?.iter().enumerate();
        values.map(|(number, value)| self.item(number).text(Some(value))).collect()
    }
}

/// The kind of a value in words.
struct Found<'a>(&'a Value);

impl fmt::Display for Found<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a text",
            Value::Array(_) => "an array",
            Value::Object(_) => "an object",
        })
    }
}

#[cfg(test)]
mod tests;
