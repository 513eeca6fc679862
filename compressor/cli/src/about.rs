//! What `inspect` says of a model beside its sizes: context, positions, tokenizer, chat template, and which programs open it.

use compressor_format::{Architecture, ChatTemplate, Error, Manifest, Model, OpensIn, Positions, RotaryScaling, Tokenizer};
use compressor_pipeline::quantize::{opens_in_as_folder, opens_in_as_gguf};
use serde_json::{Value, json};

/// See the module.
pub(crate) struct About {
    /// Stored bits for each weight, without the heads of files: that of a GGUF file holds the vocabulary.
    pub(crate) bits_per_weight: f64,
    /// In tokens.
    pub(crate) context: usize,
    pub(crate) positions: String,
    /// The tokenizer's kind and its number of tokens, or why there is none.
    pub(crate) tokenizer: Result<(&'static str, usize), Error>,
    pub(crate) has_chat_template: bool,
    /// Which programs open it; an artifact whose manifest can't be read says so.
    pub(crate) opens_in: Result<Vec<OpensIn>, Error>,
}

impl About {
    /// Looks at `model` and at the files beside it.
    ///
    /// # Errors
    /// A chat template that can't be read, and weights that are gone.
    pub(crate) fn of(model: &Model) -> anyhow::Result<Self> {
        let architecture = model.architecture();
        let stored_bytes = match model {
            Model::Checkpoint(checkpoint) => checkpoint.stored().iter().map(|tensor| tensor.bytes).sum(),
            Model::Artifact(artifact) => artifact.weight_bytes(),
        };
        let has_chat_template = match ChatTemplate::open(model.path()) {
            Ok(_) => true,
            Err(Error::Unsupported { .. }) => false,
            Err(error) => return Err(error.into()),
        };
        Ok(Self {
            bits_per_weight: 8.0 * stored_bytes as f64 / architecture.parameters() as f64,
            context: architecture.max_position_embeddings,
            positions: positions(architecture),
            tokenizer: tokenizer(model),
            has_chat_template,
            opens_in: match model {
                Model::Artifact(artifact) => Manifest::read(artifact.path()).map(|manifest| manifest.opens_in),
                Model::Checkpoint(checkpoint) if checkpoint.is_gguf() => Ok(opens_in_as_gguf()),
                Model::Checkpoint(_) => Ok(opens_in_as_folder(architecture)),
            },
        })
    }

    /// For scripts: keys and values of an object.
    pub(crate) fn json(&self) -> Vec<(&'static str, Value)> {
        let tokenizer = self.tokenizer.as_ref().ok().map(|(kind, tokens)| json!({ "kind": kind, "tokens": tokens }));
        vec![
            ("bits_per_weight", json!(self.bits_per_weight)),
            ("context_length", json!(self.context)),
            ("tokenizer", json!(tokenizer)),
            ("chat_template", json!(self.has_chat_template)),
            ("opens_in", json!(self.opens_in.as_ref().ok())),
        ]
    }
}

fn positions(architecture: &Architecture) -> String {
    let Positions::Rotary { theta, scaling } = &architecture.positions else { return "learned".to_owned() };
    let scaling = match scaling {
        RotaryScaling::None => String::new(),
        RotaryScaling::Linear { factor } => format!(", all frequencies divided by {factor}"),
        RotaryScaling::Llama3 { factor, original_max_position_embeddings: original, .. } => {
            format!(", scaled as Llama 3.1 by {factor} from {original} tokens")
        }
        RotaryScaling::PerFrequency { divisors } => {
            let range = |pick: fn(f32, f32) -> f32| divisors.iter().copied().reduce(pick).unwrap_or(1.0);
            format!(", frequencies divided one by one by {} to {}", range(f32::min), range(f32::max))
        }
    };
    format!("rotary, base {theta}{scaling}")
}

fn tokenizer(model: &Model) -> Result<(&'static str, usize), Error> {
    let tokenizer = match model {
        Model::Checkpoint(checkpoint) => checkpoint.tokenizer()?,
        Model::Artifact(artifact) => Tokenizer::open(artifact.path().join("tokenizer.json"))?,
    };
    let json: Value = serde_json::from_slice(tokenizer.json()).expect("a tokenizer's own JSON");
    let model = &json["model"];
    let kind = match model["type"].as_str() {
        Some("Unigram") => "Unigram",
        Some("WordPiece") => "WordPiece",
        Some("WordLevel") => "words",
        _ if model["byte_fallback"] == true => "SentencePiece's BPE",
        _ => "byte-level BPE",
    };
    Ok((kind, tokenizer.vocab_size()))
}
