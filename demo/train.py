#!/usr/bin/env python3
"""Make Tandem's built-in demo model: a small `qwen3moe` that writes Shakespeare-like lines.

Needs  Python 3.10+; pip install numpy jax tokenizers gguf (a CPU is enough: two cores, about an
       hour); the tools llama-quantize, llama-imatrix and llama-perplexity of llama.cpp for `pack`;
       and tinyshakespeare.txt (1.1 MB of plain text, public domain).

Run    python train.py train  --corpus tinyshakespeare.txt --out build
       python train.py pack   --out build --llama-bin llama.cpp/build/bin
       python train.py sample --out build --prompt "ROMEO:"

`train` holds out the last 10 % of the corpus's bytes, trains a byte-level BPE vocabulary and the
model on the rest, and keeps the weights with the best held-out loss (best.npz). Its learning rate
follows the clock: it falls to zero when --minutes have passed. `pack` writes demo-f32.gguf, has
llama-quantize make demo-q8_0.gguf and demo.gguf from it, and measures all three on the held-out
text, with this file's own forward pass beside them as a check.

The shipped demo.gguf came of these three lines as they stand, every option at its default: 2,619
steps (13 epochs) in 45 minutes, held-out perplexity 26.1 a token at a context of 256.
"""
import argparse, json, math, re, subprocess, sys, time
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

jax.config.update("jax_default_prng_impl", "rbg")  # cheap random bits for dropout

# ---- the architecture: every row width is a multiple of 256, the K-quants' block ----------------
LAYERS, DIM, HEADS, KV_HEADS, HEAD = 3, 256, 4, 2, 64
EXPERTS, TOP_K, FF = 16, 4, 256
VOCAB, CONTEXT, ROPE_BASE, EPS = 1024, 512, 10000.0, 1e-6
END = "<|endoftext|>"


# ---- text and vocabulary ------------------------------------------------------------------------
def split_corpus(path):
    data = Path(path).read_bytes()
    cut = len(data) - len(data) // 10
    return data[:cut].decode(), data[cut:].decode()


def train_vocabulary(text, path):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # GPT-2's expression
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator([text], trainers.BpeTrainer(
        vocab_size=VOCAB - 1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    tok.add_special_tokens([END])  # the last id
    assert tok.get_vocab_size() == VOCAB and tok.token_to_id(END) == VOCAB - 1
    tok.save(str(path))
    return tok


# ---- the model ----------------------------------------------------------------------------------
# Weights go by their GGUF names; matrices are stored [in, out] here and turned over on writing.
def init_weights(seed):
    rng = np.random.default_rng(seed)
    shapes = {"token_embd.weight": (VOCAB, DIM), "output_norm.weight": (DIM,)}
    for i in range(LAYERS):
        shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in {
            "attn_norm": (DIM,), "ffn_norm": (DIM,), "attn_q_norm": (HEAD,), "attn_k_norm": (HEAD,),
            "attn_q": (DIM, HEADS * HEAD), "attn_k": (DIM, KV_HEADS * HEAD),
            "attn_v": (DIM, KV_HEADS * HEAD), "attn_output": (HEADS * HEAD, DIM),
            "ffn_gate_inp": (DIM, EXPERTS), "ffn_gate_exps": (EXPERTS, DIM, FF),
            "ffn_up_exps": (EXPERTS, DIM, FF), "ffn_down_exps": (EXPERTS, FF, DIM)}.items()}
    weights = {}
    for name, shape in shapes.items():
        std = 0.02 if "embd" in name else shape[-2] ** -0.5 if len(shape) > 1 else 0.0
        if "attn_output" in name or "ffn_down" in name:  # what is added to the residual stream
            std /= math.sqrt(2 * LAYERS)
        noise = rng.standard_normal(shape) * std if std else np.ones(shape)
        weights[name] = noise.astype(np.float32)
    return weights


def rms_norm(x, weight):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + EPS) * weight


def rope(x):  # [batch, position, head, HEAD]; the pair of i is i + HEAD/2
    half = HEAD // 2
    angle = jnp.arange(x.shape[1])[:, None] * ROPE_BASE ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def attention(w, p, x):
    batch, length, _ = x.shape
    heads = lambda name, n: (x @ w[p + name]).reshape(batch, length, n, HEAD)
    q = rope(rms_norm(heads("attn_q.weight", HEADS), w[p + "attn_q_norm.weight"]))
    k = rope(rms_norm(heads("attn_k.weight", KV_HEADS), w[p + "attn_k_norm.weight"]))
    k, v = (jnp.repeat(t, HEADS // KV_HEADS, 2) for t in (k, heads("attn_v.weight", KV_HEADS)))
    score = jnp.einsum("bhqd,bhdk->bhqk", q.transpose(0, 2, 1, 3), k.transpose(0, 2, 3, 1))
    score = jnp.where(jnp.tri(length, dtype=bool), score / math.sqrt(HEAD), -1e30)
    mixed = jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(score, -1), v.transpose(0, 2, 1, 3))
    mixed = mixed.transpose(0, 2, 1, 3).reshape(batch, length, HEADS * HEAD)
    return mixed @ w[p + "attn_output.weight"]


# Tokens move to their experts' slots and back. Both ways know the table of the other, so forward
# and backward are gathers only (scatters are slow on a CPU). An index one past the end reads zero.
def take(rows, index):
    return jnp.concatenate([rows, jnp.zeros_like(rows[:1])])[index]


@jax.custom_vjp
def to_slots(x, token_of_slot, slot_of_pair):  # [T, DIM] -> [E*C, DIM]
    return take(x, token_of_slot)


to_slots.defvjp(lambda x, token, slot: (take(x, token), slot),
                lambda slot, grad: (take(grad, slot).sum(1), None, None))


@jax.custom_vjp
def from_slots(y, pair_of_slot, slot_of_pair):  # [E*C, DIM] -> [T, TOP_K, DIM]
    return take(y, slot_of_pair)


from_slots.defvjp(lambda y, pair, slot: (take(y, slot), pair),
                  lambda pair, grad: (take(grad.reshape(-1, grad.shape[-1]), pair), None, None))


def experts(w, p, x, slack):
    """Each expert has room for `slack` times its fair share; None means room for everything."""
    count = x.shape[0]
    prob = jax.nn.softmax(x @ w[p + "ffn_gate_inp.weight"], -1)
    gate, chosen = jax.lax.top_k(prob, TOP_K)
    gate = gate / gate.sum(-1, keepdims=True)
    room = count if slack is None else min(count, int(slack * count * TOP_K / EXPERTS))

    flat = chosen.reshape(-1)  # the pairs (token, choice), token-major
    order = jnp.argsort(flat)  # sorted by expert; ties stay in token order
    load = (flat[:, None] == jnp.arange(EXPERTS)).sum(0)
    start = jnp.cumsum(load) - load
    place = jnp.argsort(order) - start[flat]  # each pair's place within its expert
    slot_of_pair = jnp.where(place < room, flat * room + place, EXPERTS * room)
    slot_of_pair = slot_of_pair.reshape(chosen.shape)
    lane = jnp.arange(room)
    pair_of_slot = jnp.where(lane < load[:, None],
                             order[jnp.minimum(start[:, None] + lane, count * TOP_K - 1)],
                             count * TOP_K).reshape(-1)

    h = to_slots(x, pair_of_slot // TOP_K, slot_of_pair).reshape(EXPERTS, room, DIM)
    up = jnp.einsum("ecd,edf->ecf", h, w[p + "ffn_up_exps.weight"])
    act = jax.nn.silu(jnp.einsum("ecd,edf->ecf", h, w[p + "ffn_gate_exps.weight"])) * up
    y = jnp.einsum("ecf,efd->ecd", act, w[p + "ffn_down_exps.weight"]).reshape(-1, DIM)
    out = (from_slots(y, pair_of_slot, slot_of_pair) * gate[..., None]).sum(1)
    balance = EXPERTS * jnp.sum(load / flat.size * prob.mean(0))  # 1 when the load is even
    return out, balance


def forward(w, tokens, slack=None, drop=0.0, key=None):
    """Logits [batch, position, VOCAB] and the mean load-balance figure."""
    def dropout(x, n):
        if not drop:
            return x
        bits = jax.random.bits(jax.random.fold_in(key, n), x.shape, jnp.uint8)
        return jnp.where(bits >= int(drop * 256), x / (1 - int(drop * 256) / 256), 0)

    x = dropout(w["token_embd.weight"][tokens], 0)
    balance = 0.0
    for i in range(LAYERS):
        p = f"blk.{i}."
        x = x + dropout(attention(w, p, rms_norm(x, w[p + "attn_norm.weight"])), 2 * i + 1)
        h = rms_norm(x, w[p + "ffn_norm.weight"]).reshape(-1, DIM)
        y, b = experts(w, p, h, slack)
        x = x + dropout(y.reshape(x.shape), 2 * i + 2)
        balance += b / LAYERS
    return rms_norm(x, w["output_norm.weight"]) @ w["token_embd.weight"].T, balance


def cross_entropy(logits, targets):
    picked = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    return jax.nn.logsumexp(logits, -1) - picked


# ---- training -----------------------------------------------------------------------------------
def make_step(args):
    def loss(w, batch, key):
        logits, balance = forward(w, batch[:, :-1], args.slack, args.dropout, key)
        nll = cross_entropy(logits, batch[:, 1:]).mean()
        return nll + args.balance * balance, (nll, balance)

    def step(w, m, v, t, batch, key, lr):  # AdamW, the gradient's norm held to 1
        grad, info = jax.grad(loss, has_aux=True)(w, batch, key)
        norm = jnp.sqrt(sum(jnp.sum(g * g) for g in grad.values()))
        grad = {n: g * jnp.minimum(1.0, 1.0 / norm) for n, g in grad.items()}
        m = {n: args.beta1 * m[n] + (1 - args.beta1) * g for n, g in grad.items()}
        v = {n: args.beta2 * v[n] + (1 - args.beta2) * g * g for n, g in grad.items()}
        a, b = 1 - args.beta1 ** t, 1 - args.beta2 ** t
        decay = {n: args.decay if x.ndim > 1 else 0.0 for n, x in w.items()}
        w = {n: x - lr * (m[n] / a / (jnp.sqrt(v[n] / b) + 1e-8) + decay[n] * x)
             for n, x in w.items()}
        return w, m, v, info

    return jax.jit(step, donate_argnums=(0, 1, 2))


@jax.jit
def window_nll(w, windows):
    return cross_entropy(forward(w, windows[:, :-1])[0], windows[:, 1:])


def held_out(w, ids, context, batch=4):
    """As llama-perplexity counts: windows of `context`, only each one's second half scored."""
    windows = ids[:len(ids) // context * context].reshape(-1, context)
    nll = [window_nll(w, windows[i:i + batch]) for i in range(0, len(windows), batch)]
    return float(np.concatenate(nll)[:, context // 2:].mean())


def train(args):
    args.out.mkdir(parents=True, exist_ok=True)
    text, rest = split_corpus(args.corpus)
    (args.out / "train.txt").write_bytes(text.encode())
    (args.out / "holdout.txt").write_bytes(rest.encode())
    tok = train_vocabulary(text, args.out / "tokenizer.json")
    ids, test = (np.array(tok.encode(part).ids, np.int32) for part in (text, rest))
    w = init_weights(args.seed)
    print(f"{sum(x.size for x in w.values())} weights; {len(ids)} tokens to train on "
          f"({len(text) / len(ids):.2f} bytes each), {len(test)} held out", flush=True)
    m, v = ({n: np.zeros_like(x) for n, x in w.items()} for _ in "mv")
    step, rng, key = make_step(args), np.random.default_rng(args.seed), jax.random.key(args.seed)
    best, n, began, next_eval = math.inf, 0, None, args.eval_minutes
    while True:
        spent = (time.time() - began) / 60 if began else 0.0
        done = spent / args.minutes
        if spent >= next_eval or done >= 1:
            nll = held_out(w, test, CONTEXT)
            print(f"{spent:.1f} min, step {n}, {n * args.batch * CONTEXT / len(ids):.1f} epochs: "
                  f"held-out loss {nll:.4f}, perplexity {math.exp(nll):.2f}", flush=True)
            if nll < best:
                best = nll
                np.savez(args.out / "best.npz", **w)
            next_eval = spent + args.eval_minutes
            if done >= 1:
                break
        lr = args.lr * min(1, (n + 1) / 100) * max(0.0, 1 - done)
        starts = rng.integers(0, len(ids) - CONTEXT, args.batch)
        batch = np.stack([ids[s:s + CONTEXT + 1] for s in starts])
        n += 1
        w, m, v, (nll, balance) = step(w, m, v, n, batch, jax.random.fold_in(key, n), lr)
        if n % 50 == 0:
            print(f"{spent:.1f} min, step {n}: loss {nll:.4f}, balance {balance:.3f}", flush=True)
        if began is None:
            began = time.time()  # compiling is not counted


# ---- GGUF ---------------------------------------------------------------------------------------
def write_gguf(w, tok, path):
    out = gguf.GGUFWriter(path, "qwen3moe")
    out.add_type("model")
    out.add_name("Tandem demo: Shakespeare")
    out.add_license("mit")
    for key, value in {
            "block_count": LAYERS, "context_length": CONTEXT, "embedding_length": DIM,
            "feed_forward_length": TOP_K * FF, "attention.head_count": HEADS,
            "attention.head_count_kv": KV_HEADS, "rope.freq_base": ROPE_BASE,
            "attention.layer_norm_rms_epsilon": EPS, "expert_count": EXPERTS,
            "expert_used_count": TOP_K, "attention.key_length": HEAD,
            "attention.value_length": HEAD, "expert_feed_forward_length": FF}.items():
        add = out.add_float32 if isinstance(value, float) else out.add_uint32
        add(f"qwen3moe.{key}", value)
    out.add_file_type(gguf.LlamaFileType.ALL_F32)
    out.add_quantization_version(gguf.GGML_QUANT_VERSION)

    end = tok.token_to_id(END)
    merges = json.loads(tok.to_str())["model"]["merges"]
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    out.add_token_list([tok.id_to_token(i) for i in range(VOCAB)])
    out.add_token_types([gguf.TokenType.CONTROL if i == end else gguf.TokenType.NORMAL
                         for i in range(VOCAB)])
    out.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    out.add_bos_token_id(end)
    out.add_eos_token_id(end)
    out.add_add_bos_token(False)

    for name, x in w.items():  # GGUF's rows run along a matrix's input; the head is the embedding
        turned = x.ndim > 1 and "embd" not in name
        out.add_tensor(name, np.ascontiguousarray(np.swapaxes(x, -1, -2) if turned else x))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


# What the shipped file stores: Q4_K but for these. (The router and the norms stay F32.)
SHIPPED = {"token_embd": "q6_K", "attn_v": "q6_K", "attn_k": "q5_K"}


def load(out):
    return dict(np.load(out / "best.npz")), Tokenizer.from_file(str(out / "tokenizer.json"))


def pack(args):
    def tool(name, *words):  # in the folder of the files: quantized files record the imatrix's path
        words = [str(args.llama_bin.resolve() / name), *map(str, words)]
        print("$", name, *words[1:], flush=True)
        done = subprocess.run(words, cwd=args.out, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        return done.stderr

    w, tok = load(args.out)
    write_gguf(w, tok, args.out / "demo-f32.gguf")
    tool("llama-imatrix", "-m", "demo-f32.gguf", "-f", "train.txt", "-c", CONTEXT,
         "--chunks", 200, "-t", args.threads, "-o", "imatrix.gguf")
    tool("llama-quantize", "demo-f32.gguf", "demo-q8_0.gguf", "Q8_0")
    mix = [word for name, kind in SHIPPED.items() for word in ("--tensor-type", f"{name}={kind}")]
    tool("llama-quantize", "--imatrix", "imatrix.gguf", "--pure", *mix,
         "demo-f32.gguf", "demo.gguf", "Q4_K_S")
    for name in ("demo-f32.gguf", "demo-q8_0.gguf", "demo.gguf"):
        for _ in range(5):  # on a busy machine the tool can end before its last line is written
            if found := re.search(r"Final estimate: (.*)", tool(
                    "llama-perplexity", "-m", name, "-f", "holdout.txt", "-c", 256,
                    "-t", args.threads)):
                break
        print(f"{name}: {(args.out / name).stat().st_size} bytes, {found[1]}", flush=True)
    ids = np.array(tok.encode((args.out / "holdout.txt").read_bytes().decode()).ids, np.int32)
    print(f"this file's own forward pass: PPL = {math.exp(held_out(w, ids, 256)):.4f}")


def sample(args):
    (w, tok), rng = load(args.out), np.random.default_rng(args.seed)
    ids = tok.encode(args.prompt).ids
    last = jax.jit(lambda w, line, n: forward(w, line[None])[0][0, n - 1])
    while len(ids) < min(CONTEXT, args.tokens):
        line = np.pad(np.array(ids, np.int32), (0, CONTEXT - len(ids)))
        logits = np.array(last(w, line, len(ids)), np.float64)
        if args.temperature:  # the largest logit plus Gumbel noise is a sample
            logits = logits / args.temperature + rng.gumbel(size=VOCAB)
        ids.append(int(logits.argmax()))
    print(tok.decode(ids))


# ---- the command line ---------------------------------------------------------------------------
def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    sub = ap.add_subparsers(dest="command", required=True)
    a = sub.add_parser("train", help="vocabulary and weights from a text")
    a.set_defaults(run=train)
    a.add_argument("--corpus", type=Path, required=True)
    a.add_argument("--minutes", type=float, default=45, help="wall time for training")
    a.add_argument("--eval-minutes", type=float, default=3, help="time between held-out checks")
    a.add_argument("--batch", type=int, default=4, help=f"windows of {CONTEXT} tokens a step")
    for name, value in dict(lr=1.5e-3, beta1=0.9, beta2=0.98, decay=0.5, dropout=0.2,
                            slack=1.5, balance=0.01).items():
        a.add_argument(f"--{name}", type=float, default=value, help=f"default {value}")
    a.add_argument("--seed", type=int, default=1)
    a = sub.add_parser("pack", help="GGUF files and their perplexities")
    a.set_defaults(run=pack)
    a.add_argument("--llama-bin", type=Path, required=True, help="folder of llama.cpp's tools")
    a.add_argument("--threads", type=int, default=1, help="for llama.cpp's tools")
    a = sub.add_parser("sample", help="text from the trained weights")
    a.set_defaults(run=sample)
    a.add_argument("--prompt", default="ROMEO:")
    a.add_argument("--tokens", type=int, default=256, help="prompt and text together")
    a.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token")
    a.add_argument("--seed", type=int, default=1)
    for p in sub.choices.values():
        p.add_argument("--out", type=Path, required=True, help="folder for all that is made")
    args = ap.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
