//! The line that answers a request, in the form in which it was asked.

use serde_json::{Value, json};

use super::job::{Form, Refused};
use crate::talk::{End, Generated};

/// What a request came to.
pub(super) struct Done {
    pub(super) generated: Generated,
    pub(super) ended: End,
    /// Whether the text is whole by its grammar; true where there is none.
    pub(super) complete: bool,
    pub(super) seed: u64,
    pub(super) prompt_tokens: usize,
    /// Of those, how many were known already.
    pub(super) known_tokens: usize,
    pub(super) seconds: f64,
}

/// An answer.
pub(super) fn answer(form: &Form, id: &Value, n: usize, done: &Done) -> Value {
    let Done { generated, ended, complete, seed, prompt_tokens, known_tokens, seconds } = done;
    let n_generated = generated.tokens.len();
    let calls = !generated.calls.is_empty() && ended.is_whole();
    let Form::OpenAi { custom_id, chat, model } = form else {
        let mut line = json!({
            "id": id, "text": generated.answer, "finish": if calls { "tool_calls" } else { ended.name() },
            "tokens": { "prompt": prompt_tokens, "known": known_tokens, "generated": n_generated },
            "seconds": seconds, "seed": seed,
        });
        if !complete {
            line["complete"] = false.into();
        }
        if !generated.reasoning.is_empty() {
            line["reasoning"] = generated.reasoning.clone().into();
        }
        if !generated.calls.is_empty() {
            line["tool_calls"] = generated.own_calls();
        }
        if !generated.incomplete.is_empty() {
            line["incomplete_tool_call"] = generated.incomplete.clone().into();
        }
        if !generated.logprobs.is_empty() {
            line["logprobs"] = generated.logprobs.clone().into();
        }
        return line;
    };
    let finish = match ended {
        End::Limit(_) | End::Context => "length",
        // The API has no word for a part of an answer.
        End::Interrupted => {
            return failure(custom_id, n, (503, "ServiceUnavailableError"), "interrupted before the end");
        }
        _ if calls => "tool_calls",
        End::Model | End::Stop(_) | End::Complete => "stop",
    };
    let logprobs = if generated.logprobs.is_empty() { Value::Null } else { logprobs(*chat, &generated.logprobs) };
    let choice = if *chat {
        let mut message = json!({ "role": "assistant", "content": generated.answer });
        if !generated.reasoning.is_empty() {
            message["reasoning_content"] = generated.reasoning.clone().into();
        }
        if !generated.calls.is_empty() {
            message["tool_calls"] = generated.api_calls();
            if generated.answer.is_empty() {
                message["content"] = Value::Null;
            }
        }
        if !generated.incomplete.is_empty() {
            message["incomplete_tool_call"] = generated.incomplete.clone().into();
        }
        json!({ "index": 0, "message": message, "logprobs": logprobs, "finish_reason": finish })
    } else {
        json!({ "index": 0, "text": generated.answer, "logprobs": logprobs, "finish_reason": finish })
    };
    let body = json!({
        "id": format!("tandem-{n}"),
        "object": if *chat { "chat.completion" } else { "text_completion" },
        "created": now(),
        "model": model,
        "choices": [choice],
        "usage": {
            "prompt_tokens": prompt_tokens, "completion_tokens": n_generated, "total_tokens": prompt_tokens + n_generated,
            "prompt_tokens_details": { "cached_tokens": known_tokens },
        },
    });
    let request = format!("tandem-request-{n}");
    json!({
        "id": format!("tandem-batch-{n}"), "custom_id": custom_id,
        "response": { "status_code": 200, "request_id": request, "body": body }, "error": null,
    })
}

/// An error.
pub(super) fn error(refused: &Refused, n: usize, line: usize) -> Value {
    let Refused { form, id, why } = refused;
    match form {
        Form::Own => json!({ "id": id, "error": why, "line": line }),
        Form::OpenAi { custom_id, .. } => failure(custom_id, n, (400, "BadRequestError"), why),
    }
}

fn failure(custom_id: &str, n: usize, (code, kind): (u16, &str), why: &str) -> Value {
    json!({
        "id": format!("tandem-batch-{n}"), "custom_id": custom_id,
        "response": { "status_code": code, "request_id": format!("tandem-request-{n}"), "body": null },
        "error": { "message": why, "type": kind, "param": null, "code": code },
    })
}

/// Log-probabilities as OpenAI writes them: for a chat a list of tokens, for a text parallel lists.
fn logprobs(chat: bool, list: &[Value]) -> Value {
    let one = |v: &Value| json!({ "token": v["token"], "logprob": v["logprob"], "bytes": v["bytes"] });
    let chars = |v: &Value| v["token"].as_str().unwrap_or_default().chars().count();
    let tops = |v: &Value| v["top"].as_array().cloned().unwrap_or_default();
    if chat {
        let content = list.iter().map(|v| {
            let mut token = one(v);
            token["top_logprobs"] = tops(v).iter().map(one).collect();
            token
        });
        return json!({ "content": content.collect::<Vec<_>>() });
    }
    let all = |key: &str| list.iter().map(|v| v[key].clone()).collect::<Vec<_>>();
    let top = |v: &Value| {
        let pairs =
            tops(v).into_iter().map(|t| (t["token"].as_str().unwrap_or_default().to_owned(), t["logprob"].clone()));
        Value::Object(pairs.collect())
    };
    let mut at = 0;
    let offset = |v: &Value| {
        at += chars(v);
        at - chars(v)
    };
    let offsets: Vec<usize> = list.iter().map(offset).collect();
    json!({
        "tokens": all("token"), "token_logprobs": all("logprob"), "text_offset": offsets,
        "top_logprobs": list.iter().map(top).collect::<Vec<_>>(),
    })
}

/// Seconds since 1970.
fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
