//! How a model that was taught to talk wants a conversation written, and which tokens end what it says.
//!
//! A chat template is Jinja text that came with the model. It is rendered as Transformers does it, with the same settings, names and
//! functions, but for tools and documents, which there are none of. It sees what is handed to it and nothing else: no file, no other
//! template, and so many steps; and it runs in a process of its own, see [`process`].

pub(crate) mod process;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value as Rendered};
use minijinja::{AutoEscape, Environment, ErrorKind};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::families::token_ids;
use crate::model::parse_config;
use crate::read::is_there;
use crate::{Error, GgufFile, Result, Tokenizer};

/// Who says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Says how the model is to behave.
    System,
    /// Asks.
    User,
    /// Answers.
    Assistant,
}

/// A turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said.
    pub content: String,
}

/// A model's chat template.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChatTemplate {
    /// The file that it stands in, for messages.
    #[serde(skip)]
    path: PathBuf,
    source: String,
    /// `bos_token` and its like, by the names that templates use.
    special_tokens: BTreeMap<Cow<'static, str>, String>,
}

/// The special tokens that a template can name.
const SPECIAL_TOKENS: [&str; 4] = ["bos_token", "eos_token", "unk_token", "pad_token"];
/// Of several templates, the one for a conversation without tools.
const DEFAULT: &str = "default";
/// Instructions of a rendering. A conversation of a hundred turns takes some ten thousand.
const MOST_STEPS: u64 = 1_000_000;

impl ChatTemplate {
    /// Reads the template of a model: `chat_template.jinja`, else `chat_template` in `tokenizer_config.json`, of a folder;
    /// `tokenizer.chat_template` of a GGUF file. Whether it is a template shows when it is rendered.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where there is none, [`Error::Malformed`] where a file that could hold it is damaged.
    pub fn open(model: &Path) -> Result<Self> {
        match crate::is_model_folder(model)? {
            true => Self::in_folder(model)?.ok_or_else(|| {
                let what = "has no chat template, neither chat_template.jinja nor `chat_template` in tokenizer_config.json: it can only \
                            continue a text";
                Error::unsupported(model, what)
            }),
            false => Self::in_gguf(&GgufFile::open(model)?),
        }
    }

    fn new(path: PathBuf, source: &str, special_tokens: BTreeMap<&'static str, String>) -> Self {
        let special_tokens = special_tokens.into_iter().map(|(name, token)| (Cow::Borrowed(name), token)).collect();
        Self { path, source: lines(source), special_tokens }
    }

    /// The template of a folder, unread but as text; `None` where there is none.
    pub(crate) fn in_folder(folder: &Path) -> Result<Option<Self>> {
        let config_path = folder.join("tokenizer_config.json");
        let config = read_json(&config_path)?;
        let jinja_path = folder.join("chat_template.jinja");
        let (path, source) = match is_there(&jinja_path) {
            true => (jinja_path.clone(), crate::read_text(&jinja_path)?),
            false => {
                let source = match &config["chat_template"] {
                    Value::Null => return Ok(None),
                    Value::String(source) => source.clone(),
                    Value::Array(named) => default_of(named).map_err(|what| Error::malformed(&config_path, what))?,
                    other => {
                        let what = format!("`chat_template` is {other}; it must be a string or a list of named ones");
                        return Err(Error::malformed(&config_path, what));
                    }
                };
                (config_path, source)
            }
        };
        Ok(Some(Self::new(path, &source, special_tokens(folder)?)))
    }

    /// Its text.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    pub(crate) fn in_gguf(file: &GgufFile) -> Result<Self> {
        let Some(source) = file.text("tokenizer.chat_template")? else {
            let what = "has no chat template, there is no `tokenizer.chat_template`: it can only continue a text";
            return Err(Error::unsupported(file.path(), what));
        };
        let keys = ["bos", "eos", "unknown", "padding"].map(|name| format!("tokenizer.ggml.{name}_token_id"));
        let tokens = file.special_tokens(keys.each_ref().map(String::as_str))?;
        let special_tokens = SPECIAL_TOKENS.into_iter().zip(tokens).filter_map(|(name, token)| Some((name, token?))).collect();
        Ok(Self::new(file.path().to_owned(), source, special_tokens))
    }

    /// The conversation as the model wants it. Here a template takes what memory and stack it wants: only for a process that can be
    /// lost, and for templates of tests.
    pub(crate) fn render_here(&self, messages: &[Message]) -> Result<String> {
        let source = without_extensions(&self.source);
        let environment = environment();
        let template = environment.template_from_str(&source).map_err(|error| self.malformed(&error))?;
        let tokens = self.special_tokens.iter().map(|(name, token)| (&**name, Rendered::from(token.as_str())));
        let conversation = [
            ("messages", Rendered::from(Serde(messages))),
            ("add_generation_prompt", Rendered::from(true)),
            ("tools", Rendered::from(())),
            ("documents", Rendered::from(())),
        ];
        template.render(Rendered::from_pairs(tokens.chain(conversation))).map_err(|error| match refusal(&error) {
            Some(reason) => Error::unsupported(&self.path, format!("the chat template refuses this conversation: {reason}")),
            None => self.malformed(&error),
        })
    }

    fn malformed(&self, error: &minijinja::Error) -> Error {
        if error.kind() == ErrorKind::OutOfFuel {
            return Error::malformed(&self.path, format!("the chat template does not end within {MOST_STEPS} steps"));
        }
        let detail = error.detail().map(|detail| format!(": {detail}")).unwrap_or_default();
        let line = error.line().map(|line| format!(" (line {line} of the template)")).unwrap_or_default();
        Error::malformed(&self.path, format!("the chat template can't be rendered: {}{detail}{line}", error.kind()))
    }
}

/// A template as Jinja reads it: whatever ends a line is `\n`. A byte order mark before it is no part of it.
fn lines(source: &str) -> String {
    source.trim_start_matches('\u{FEFF}').replace("\r\n", "\n").replace('\r', "\n")
}

/// `bos_token` and its like as a folder has them, by the names that templates use.
pub(crate) fn special_tokens(folder: &Path) -> Result<BTreeMap<&'static str, String>> {
    let config = read_json(&folder.join("tokenizer_config.json"))?;
    let map = read_json(&folder.join("special_tokens_map.json"))?;
    let token = |name| Some((name, written(&config[name]).or_else(|| written(&map[name]))?));
    Ok(SPECIAL_TOKENS.into_iter().filter_map(token).collect())
}

/// The template that a list of named ones calls [`DEFAULT`].
fn default_of(named: &[Value]) -> Result<String, String> {
    let default = named.iter().find(|one| one["name"] == DEFAULT).and_then(|one| one["template"].as_str());
    default.map(str::to_owned).ok_or_else(|| {
        let names: Vec<&str> = named.iter().filter_map(|one| one["name"].as_str()).collect();
        format!("none of its chat templates is named `{DEFAULT}`: {}", names.join(", "))
    })
}

/// A file of JSON; null where there is none.
pub(crate) fn read_json(path: &Path) -> Result<Value> {
    if !is_there(path) {
        return Ok(Value::Null);
    }
    parse_config(&crate::read_file(path, crate::LIST_BYTES)?, path)
}

/// Jinja set up as Transformers does it.
fn environment<'a>() -> Environment<'a> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the usual delimiters"));
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(MOST_STEPS));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", to_json);
    environment.add_function("strftime_now", strftime_now);
    environment.add_function("raise_exception", |reason: String| -> Result<Rendered, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Refusal(reason)))
    });
    environment
}

/// What a template says with `raise_exception`.
#[derive(Debug)]
struct Refusal(String);

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

/// Why the template itself refused, if it did; the error can lie below that of a macro.
fn refusal(error: &minijinja::Error) -> Option<String> {
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    causes.into_iter().find_map(|cause| cause.downcast_ref::<Refusal>()).map(|Refusal(reason)| reason.clone())
}

/// Transformers marks what the assistant says with `{% generation %}`, for training; here the tag must only be a block.
fn without_extensions(source: &str) -> String {
    let mut plain = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        plain.push_str(before);
        let inside = tag.trim_start_matches(['-', '+']);
        plain.push_str(&tag[..tag.len() - inside.len()]);
        let word = inside.trim_start();
        let is = |name: &str| {
            word.strip_prefix(name).filter(|after| after.trim_start_matches([' ', '\t', '\n', '-', '+']).starts_with("%}"))
        };
        rest = match (is("generation"), is("endgeneration")) {
            (Some(after), _) => {
                plain.push_str(" if true");
                after
            }
            (None, Some(after)) => {
                plain.push_str(" endif");
                after
            }
            (None, None) => inside,
        };
    }
    plain + rest
}

/// Python's `json.dumps` with `ensure_ascii` off, on one line or indented: Jinja's own filter escapes what HTML would read.
fn to_json(value: &Rendered, options: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    options.assert_all_used()?;
    let failed = |error: serde_json::Error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string());
    let mut bytes = Vec::new();
    match indent {
        Some(indent) => {
            let spaces = vec![b' '; indent.min(WIDEST_INDENT)];
            let formatter = serde_json::ser::PrettyFormatter::with_indent(&spaces);
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, formatter)).map_err(failed)?;
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, OneLine)).map_err(failed)?,
    }
    String::from_utf8(bytes).map_err(|error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string()))
}

/// Beyond this an indent is a mistake.
const WIDEST_INDENT: usize = 16;

/// JSON on one line as Python writes it, with a space after `,` and `:`.
struct OneLine;

impl serde_json::ser::Formatter for OneLine {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

/// Today's date or time in Python's `strftime` letters: some models are told it.
fn strftime_now(format: &str) -> Result<String, minijinja::Error> {
    jiff::fmt::strtime::format(format, &jiff::Zoned::now())
        .map_err(|error| minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {error}")))
}

/// The tokens that end what a model says, beside those of its `config.json`: `eos_token_id` of `generation_config.json` and
/// `eos_token` of `tokenizer_config.json` in a folder, `eos_token_id` and `eot_token_id` of a GGUF file. Models that talk end a turn with another token
/// than a text.
///
/// # Errors
/// [`Error::Malformed`] where one of these files is no JSON or names no token.
pub fn end_tokens(model: &Path, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    if !crate::is_model_folder(model)? {
        return GgufFile::open(model)?.end_tokens();
    }
    let path = model.join("generation_config.json");
    let config = read_json(&path)?;
    let wrong = |value: &Value| Error::malformed(&path, format!("`eos_token_id` is {value}, a token id is needed"));
    let mut ends = token_ids(&config["eos_token_id"]).map_err(wrong)?;
    let config = read_json(&model.join("tokenizer_config.json"))?;
    ends.extend(written(&config["eos_token"]).and_then(|token| tokenizer.id(&token)));
    Ok(ends)
}

/// What a GGUF file says about conversations as the files of a Hugging Face folder, by name: the template, the special tokens that it
/// names, and the tokens that end an answer where there are several.
pub(crate) fn files(file: &GgufFile) -> Result<Vec<(&'static str, String)>> {
    let mut files = Vec::new();
    if file.text("tokenizer.chat_template")?.is_some() {
        let template = ChatTemplate::in_gguf(file)?;
        // This class is `tokenizer.json` as it is; without it Transformers would make the class of the model's family.
        let mut config = json!({ "tokenizer_class": "PreTrainedTokenizerFast" });
        for (name, token) in &template.special_tokens {
            config[&**name] = token.as_str().into();
        }
        files.push(("chat_template.jinja", template.source));
        files.push(("tokenizer_config.json", format!("{config:#}\n")));
    }
    match file.end_tokens()?.as_slice() {
        [] | [_] => {}
        ends => files.push(("generation_config.json", format!("{:#}\n", json!({ "eos_token_id": ends })))),
    }
    Ok(files)
}

/// A special token: the text itself, or an object with it and what the tokenizer must know about it.
fn written(value: &Value) -> Option<String> {
    value.as_str().or(value["content"].as_str()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Blocks on lines of their own, Python's methods, and the tag for training.
    const BLOCKS: &str = r#"{%- if messages[0].role == 'system' %}
    {{- bos_token + messages[0].content.strip() }}
{%- else %}
    {{- bos_token }}
{%- endif %}
{% for message in messages if message.role != 'system' %}
  {% set role = message['role'] %}
  [{{ role | upper }}] {{ message.content.split('!')[-1].lstrip() | trim }}
  {% if loop.last %}
  {% generation %}
end
  {% endgeneration %}
  {% endif %}
{% endfor %}
{% if tools is not none %}with tools{% endif %}
{% if add_generation_prompt %}
[ASSISTANT]
{% endif %}
"#;
    /// A macro, a namespace, a slice backwards, a loop that is left, JSON.
    const PROGRAM: &str = r#"{%- macro turn(message) -%}
<{{ message.role }}>{{ message.content | tojson }}
{% endmacro -%}
{%- set found = namespace(last=-1) -%}
{%- for message in messages[::-1] -%}
{%- if message.role == "user" -%}{%- set found.last = loop.index0 -%}{%- break -%}{%- endif -%}
{%- endfor -%}
{{ found.last }} {{ unknown_token }}{{ {"a": [1, 2.5, none, true], "b": {}} | tojson }}
{{ {"a": [1], "b": "é"} | tojson(indent=2) }}
{% for message in messages %}{{ turn(message) }}{% if loop.nextitem is defined %}, {% endif %}{% endfor %}
{{ messages[0].get("name", "nobody") }} {{ "x" if messages | length > 1 else "y" }} {{ messages[0].items() | list | length }}
"#;

    fn conversation() -> [Message; 2] {
        [
            Message { role: Role::System, content: "  Be brief.\n".to_owned() },
            Message { role: Role::User, content: "Hey! \n Hello <you>".to_owned() },
        ]
    }

    /// A folder with these files of JSON or, where it is a string, of text.
    fn folder(files: &[(&str, Value)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let text = content.as_str().map_or_else(|| content.to_string(), str::to_owned);
            fs_err::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    fn rendered(template: &str, messages: &[Message]) -> Result<String> {
        let config =
            json!({ "chat_template": template, "bos_token": { "content": "<s>", "lstrip": false }, "eos_token": "</s>" });
        ChatTemplate::open(folder(&[("tokenizer_config.json", config)]).path())?.render_here(messages)
    }

    /// The message without the folder, which has another name each time.
    fn refused(files: &[(&str, Value)]) -> String {
        let folder = folder(files);
        let error = ChatTemplate::open(folder.path()).and_then(|template| template.render_here(&conversation())).unwrap_err();
        error.to_string().replace(&folder.path().display().to_string(), "model")
    }

    #[test]
    fn templates_give_what_jinja_gives() {
        // Expected: Jinja2 3.1.6 with trim_blocks, lstrip_blocks and loopcontrols, `generation` written as a block.
        let [system, user] = conversation();
        let expected = "<s>Be brief.  [USER] Hello <you>\nend\n[ASSISTANT]\n";
        assert_eq!(rendered(BLOCKS, &[system.clone(), user.clone()]).unwrap(), expected);
        assert_eq!(rendered(BLOCKS, std::slice::from_ref(&user)).unwrap(), "<s>  [USER] Hello <you>\nend\n[ASSISTANT]\n");
        let expected = "0 {\"a\": [1, 2.5, null, true], \"b\": {}}\n{\n  \"a\": [\n    1\n  ],\n  \"b\": \"é\"\n}\n\
                        <system>\"  Be brief.\\n\"\n, <user>\"Hey! \\n Hello <you>\"\nnobody x 2";
        assert_eq!(rendered(PROGRAM, &[system, user]).unwrap(), expected);
    }

    #[test]
    fn the_tag_for_training_keeps_its_signs() {
        let marked =
            "a {%- generation -%} b {%endgeneration%} {%+ endgeneration %}{% generations %}{% set generation = 1 %}{% generation";
        let plain = "a {%- if true -%} b {% endif%} {%+ endif %}{% generations %}{% set generation = 1 %}{% generation";
        assert_eq!(without_extensions(marked), plain);
    }

    #[test]
    fn lines_end_as_jinja_reads_them() {
        // Expected: Jinja2 3.1.6, which makes `\n` of every line's end in a template, and leaves those of a message.
        let message = Message { role: Role::User, content: "a\r\nb".to_owned() };
        let template = "\u{FEFF}{% if true %}\r\nx\r\n{{ 'y\r\nz' }}\r{{ messages[0].content }}\r\n\r\n{% endif %}";
        assert_eq!(rendered(template, std::slice::from_ref(&message)).unwrap(), "x\ny\nz\na\r\nb\n\n");
        let folder = folder(&[("chat_template.jinja", json!(template))]);
        assert_eq!(ChatTemplate::open(folder.path()).unwrap().render_here(&[message]).unwrap(), "x\ny\nz\na\r\nb\n\n");
    }

    #[test]
    fn a_template_knows_the_special_tokens_and_the_day() {
        assert_eq!(rendered("{{ bos_token }}{{ eos_token }}{{ pad_token }}.", &[]).unwrap(), "<s></s>.");
        let today = jiff::Zoned::now().date().to_string();
        let found = rendered("{{ strftime_now('%Y-%m-%d') }}", &[]).unwrap();
        let after = jiff::Zoned::now().date().to_string();
        assert!(found == today || found == after, "{found}, {today} or at midnight {after}");
        let from_map = [
            ("chat_template.jinja", json!("{{ eos_token }}")),
            ("special_tokens_map.json", json!({ "eos_token": { "content": "<end>" } })),
        ];
        let folder = folder(&from_map);
        assert_eq!(ChatTemplate::open(folder.path()).unwrap().render_here(&[]).unwrap(), "<end>");
    }

    #[test]
    fn the_file_of_its_own_comes_first_and_of_several_templates_the_default() {
        let named = json!({ "chat_template": [{ "name": "rag", "template": "no" }, { "name": "default", "template": "yes" }] });
        let folder = folder(&[("tokenizer_config.json", named)]);
        assert_eq!(ChatTemplate::open(folder.path()).unwrap().render_here(&[]).unwrap(), "yes");
        fs_err::write(folder.path().join("chat_template.jinja"), "own").unwrap();
        assert_eq!(ChatTemplate::open(folder.path()).unwrap().render_here(&[]).unwrap(), "own");
    }

    #[test]
    fn a_model_without_a_template_is_refused() {
        let expected = "model: has no chat template, neither chat_template.jinja nor `chat_template` in tokenizer_config.json: it can \
                        only continue a text";
        assert_eq!(refused(&[]), expected);
        assert_eq!(refused(&[("tokenizer_config.json", json!({ "eos_token": "x" }))]), expected);
    }

    #[test]
    fn a_template_that_cannot_be_used_is_refused_by_name() {
        let config = |template: Value| refused(&[("tokenizer_config.json", json!({ "chat_template": template }))]);
        assert_eq!(
            config(json!(3)),
            "model/tokenizer_config.json: `chat_template` is 3; it must be a string or a list of named ones"
        );
        assert_eq!(
            config(json!([{ "name": "rag", "template": "" }, { "name": "tool_use", "template": "" }])),
            "model/tokenizer_config.json: none of its chat templates is named `default`: rag, tool_use"
        );
        assert_eq!(
            config(json!("\n{% for %}")),
            "model/tokenizer_config.json: the chat template can't be rendered: syntax error: unexpected end of block, expected in \
             (line 2 of the template)"
        );
        assert_eq!(
            config(json!("{{ messages[0].content.sing() }}")),
            "model/tokenizer_config.json: the chat template can't be rendered: unknown method: string has no method named sing (line \
             1 of the template)"
        );
        assert_eq!(
            refused(&[("chat_template.jinja", json!("{% include '/etc/hostname' %}"))]),
            "model/chat_template.jinja: the chat template can't be rendered: template not found: tried to include \
             non-existing template '/etc/hostname' (line 1 of the template)"
        );
        assert_eq!(
            config(json!("{% for a in range(9999) %}{% for b in range(9999) %}.{% endfor %}{% endfor %}")),
            "model/tokenizer_config.json: the chat template does not end within 1000000 steps"
        );
        assert_eq!(
            refused(&[("tokenizer_config.json", json!("{"))]),
            "model/tokenizer_config.json: is not valid JSON: EOF while parsing an object at line 1 column 1"
        );
    }

    #[test]
    fn a_template_can_refuse_a_conversation() {
        let expected = "model/chat_template.jinja: the chat template refuses this conversation: no system, please";
        let plain = "{% if messages[0].role == 'system' %}{{ raise_exception('no system, please') }}{% endif %}";
        assert_eq!(refused(&[("chat_template.jinja", json!(plain))]), expected);
        let inside = "{% macro no() %}{{ raise_exception('no system, please') }}{% endmacro %}{{ no() }}";
        assert_eq!(refused(&[("chat_template.jinja", json!(inside))]), expected);
    }

    #[test]
    fn tokens_that_end_an_answer_come_from_every_file_that_names_them() {
        let tokenizer = Tokenizer::train_bpe(std::iter::empty(), 300).unwrap();
        let ends = |files: &[(&str, Value)]| {
            let folder = folder(files);
            end_tokens(folder.path(), &tokenizer)
                .map_err(|error| error.to_string().replace(&folder.path().display().to_string(), "model"))
        };
        assert_eq!(ends(&[]).unwrap(), [0_u32; 0]);
        assert_eq!(ends(&[("generation_config.json", json!({ "eos_token_id": 5 }))]).unwrap(), [5]);
        let list = ("generation_config.json", json!({ "eos_token_id": [7, -1, 8] }));
        let config = ("tokenizer_config.json", json!({ "eos_token": { "content": "<|command|>" } }));
        assert_eq!(ends(&[list, config]).unwrap(), [7, 8, 1]);
        assert_eq!(
            ends(&[("generation_config.json", json!({ "eos_token_id": "x" }))]).unwrap_err(),
            "model/generation_config.json: `eos_token_id` is \"x\", a token id is needed"
        );
    }
}
