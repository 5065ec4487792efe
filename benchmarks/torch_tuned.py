"""FastDFKD as someone who knows PyTorch well writes it: `torch_fastdfkd`'s mathematics, never waiting within a call.

Of three forms. *Tuned*: losses and metrics stay on the device; networks and their gradients are channels_last; frozen
copies of the networks share their weights; optimizers and sums over layers are fused; all state is written in place.
*Compiled*: the same with `torch.compile(mode="max-autotune")` of the loss, of the generator and of the KD step's loss.
*Graphed*: the same as tuned, with a whole call of k steps and a whole KD step replayed as CUDA graphs; on a CPU, which
has none, it runs them as tuned does.

cuDNN chooses its convolutions by trial. They run in TF32 on a GPU that has it, which is PyTorch's default.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.torch_fastdfkd import Options

_every: Any = torch  # its stubs hide the functions of whole lists, which optimizers are made of
_WARM_UPS = 2  # runs before a capture, in which optimizers and cuDNN set themselves up


class WithMoments(nn.Module):
    """A network that gives its logits and the means and biased variances of its BatchNorms' inputs, in lists."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.layers = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
        self._seen: list[tuple[Tensor, Tensor]] = []
        for layer in self.layers:
            layer.register_forward_hook(self._hook)

    def _hook(self, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        moments = torch.var_mean(inputs[0], (0, 2, 3), unbiased=False)
        var, mean = (moment.to(layer.running_mean.dtype) for moment in moments)  # of bf16 inputs too
        self._seen.append((mean, var))

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits; means of all layers and after them variances of all layers."""
        self._seen = []
        logits = self.network(images)
        # Kept, they would keep the graph of gradients alive, and with it the stream on which that was made: no capture.
        seen, self._seen = self._seen, []
        means, variances = zip(*seen, strict=True)
        return logits, [*means, *variances]


def frozen(network: nn.Module) -> nn.Module:
    """Returns the network in evaluation mode and without gradients; it shares the given one's weights and buffers."""
    twin = copy.deepcopy(channels_last(network)).eval().requires_grad_(False)
    for ours, theirs in zip(_tensors(twin), _tensors(network), strict=True):
        ours.data = theirs.data
    return twin


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def channels_last(module: nn.Module) -> nn.Module:
    """Returns the module with its weights in the layout of channels_last convolutions."""
    return module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - torch's stub lacks it


class Terms(NamedTuple):
    """The losses and the agreement of a step, as scalars, and the moments of `WithMoments`."""

    total: Tensor
    class_loss: Tensor
    feature: Tensor
    agreement: Tensor
    moments: list[Tensor]


class Synthesizer:
    """Everything that a synthesis call needs and changes; its results lie in tensors that the next call overwrites.

    Args:
      teacher, student: the networks; the student may be training.
      meta: the meta-generator.
      outer: makes its optimizer from the parameters and further keywords.
      mean, std: normalisation, shaped to broadcast over NCHW.
      options: hyper-parameters.
      form: of `torch_forms.TUNED`.
      autocast: of every forward pass.

    Attributes:
      accumulated: moments so far, as `WithMoments` gives them; None before the first call.
      best: f32[B, C, H, W], the images of lowest loss.
      losses: f32[k], of each step of the last call.
      last: the terms of its last step.
      fast, latents: generator and latents after its steps.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        meta: nn.Module,
        outer: Callable[..., torch.optim.Optimizer],
        mean: Tensor,
        std: Tensor,
        options: Options | None = None,
        form: str = "tuned",
        autocast: AbstractContextManager[Any] | None = None,
    ):
        self.form, self.options = form, options or Options()
        self.mean, self.std, self.autocast = mean, std, autocast or nullcontext()
        self.teacher, self.student = WithMoments(frozen(teacher)), frozen(student)
        self.meta, self.fast = channels_last(meta), copy.deepcopy(meta)
        layers = self.teacher.layers
        self._targets: list[Any] = [layer.running_mean for layer in layers] + [layer.running_var for layer in layers]
        self._weights, self._fast_weights = list(meta.parameters()), list(self.fast.parameters())
        for weight in self._weights:
            weight.grad = torch.zeros_like(weight)
        fused: dict[str, Any] = {"fused": True, "capturable": mean.is_cuda}
        self.outer = outer(self._weights, **fused)
        self._fused = fused
        self._inner: torch.optim.Optimizer | None = None
        self.accumulated: list[Tensor] | None = None
        self._graphs: dict[bool, Callable[[], None]] = {}
        self._loss, self._generate = self._terms, self.fast
        if form == "compiled":
            compiled = mode(mean.is_cuda)
            self._loss, self._generate = torch.compile(self._terms, **compiled), torch.compile(self.fast, **compiled)

    def synthesize(
        self, latents: Tensor, labels: Tensor, steps: int, adversarial: bool, augment: Callable[[Tensor, int], Tensor]
    ) -> Tensor:
        """One call with the FOMAML sum of gradients; gives the images of lowest loss, without waiting for them.

        Args:
          latents: f32[B, D].
          labels: i64[B].
          steps: k.
          adversarial: whether the adversarial term takes part.
          augment: `augment(images, step)`, the view of a step. A graph replays that of the second call, so its inputs
            and k must not change.
        """
        if self._inner is None:
            self._begin(latents, labels, steps)
        self._start.copy_(latents)
        self._labels.copy_(labels)
        if self.form != "graphed" or self.accumulated is None:  # without accumulators there is one call only
            self._call(steps, adversarial, augment)
            return self.best
        if adversarial not in self._graphs:
            self._graphs[adversarial] = graph(lambda: self._call(steps, adversarial, augment), self._state)
        self._graphs[adversarial]()
        return self.best

    def _begin(self, latents: Tensor, labels: Tensor, steps: int) -> None:
        """Allocates all tensors that calls write in place."""
        self._start, self._labels = latents.clone(), labels.clone()
        self.latents = latents.clone().requires_grad_()
        with torch.no_grad():
            self.best = torch.empty_like(self.fast(latents))
        self.losses = latents.new_zeros(steps)
        groups = [
            {"params": self._fast_weights, "lr": self.options.generator_lr},
            {"params": [self.latents], "lr": self.options.latents_lr},
        ]
        self._inner = torch.optim.Adam(groups, betas=self.options.betas, **self._fused)
        self._variables = [*self._fast_weights, self.latents]
        for variable in self._variables:
            variable.grad = torch.zeros_like(variable)
        self._inner.step()  # of no gradient, which moves nothing and makes the state

    def _call(self, steps: int, adversarial: bool, augment: Callable[[Tensor, int], Tensor]) -> None:
        inner, lowest = self._inner, None
        assert inner is not None
        with torch.no_grad():
            _every._foreach_copy_(self._variables, [*self._weights, self._start])
            _every._foreach_zero_([weight.grad for weight in self._weights])
            _every._foreach_zero_([tensor for state in inner.state.values() for tensor in state.values()])
        for step in range(steps):
            if self.form == "compiled":
                torch.compiler.cudagraph_mark_step_begin()
            with self.autocast:
                images = self._generate(self.latents)
                # The loss of the first call, which has no accumulators, would be compiled for that call only.
                loss = self._terms if self.accumulated is None else self._loss
                terms = loss(augment(images, step), self._labels, adversarial)
            inner.zero_grad()
            terms.total.backward()
            with torch.no_grad():
                lowest = self._keep(step, images, terms.total, lowest)
                _every._foreach_add_([w.grad for w in self._weights], [w.grad for w in self._fast_weights])
            inner.step()
            if step + 1 == steps:
                self._finish(terms)
        self.outer.step()

    def _keep(self, step: int, images: Tensor, loss: Tensor, lowest: Tensor | None) -> Tensor:
        """Keeps a step's loss, and its images if none before had a lower one; gives the lowest so far."""
        self.losses[step].copy_(loss)
        if lowest is None:
            self.best.copy_(images)
            return self.losses[step].clone()
        self.best.copy_(torch.where(self.losses[step] < lowest, images, self.best))
        return torch.minimum(lowest, self.losses[step])

    @torch.no_grad()
    def _finish(self, terms: Terms) -> None:
        """Eq. 14, with the moments of the last iterate (METHOD T3)."""
        if self.accumulated is None:
            self.accumulated = [moment.clone() for moment in terms.moments]
        else:
            _every._foreach_lerp_(self.accumulated, list(terms.moments), 1 - self.options.accumulator_weight)
        total, class_loss, feature, agreement, _ = terms
        self.last = Terms(total.clone(), class_loss.clone(), feature.clone(), agreement.clone(), self.accumulated)

    def _terms(self, view: Tensor, labels: Tensor, adversarial: bool) -> Terms:
        """Eq. 13 with the momentum feature term of Eq. 15, as the released code weighs them."""
        options, inputs = self.options, (view - self.mean) / self.std
        logits, moments = self.teacher(inputs)
        mixed = moments
        if self.accumulated is not None:
            mixed = _every._foreach_lerp(moments, self.accumulated, options.accumulator_weight)
        feature = torch.stack(_every._foreach_norm(_every._foreach_sub(self._targets, mixed))).sum()
        class_loss = functional.cross_entropy(logits, labels)
        total = options.class_weight * class_loss + options.feature_weight * feature
        agreement = view.new_zeros(())
        if adversarial:
            seen = self.student(inputs)
            log_p = logits.log_softmax(1)
            divergence = (log_p.exp() * (log_p - seen.log_softmax(1))).sum(1)
            agree = logits.argmax(1) == seen.argmax(1)
            total = total - options.adversarial_weight * (divergence * agree).mean()
            agreement = agree.to(view.dtype).mean()
        return Terms(total, class_loss, feature, agreement, moments)

    @property
    def adapted(self) -> tuple[nn.Module, Tensor]:
        """Returns generator and latents after the last call's steps."""
        return self.fast, self.latents.detach()

    def _state(self) -> list[Tensor]:
        """Returns the tensors that a call changes and the next one reads."""
        outer = (tensor for state in self.outer.state.values() for tensor in state.values())
        return [*self._weights, *outer, *(self.accumulated or [])]


class Distiller:
    """KD steps (Algorithm 1 lines 18 to 20) of a student; nothing waits for the device.

    Args:
      teacher, student: the networks; the student is trained in place.
      optimizer: makes the optimizer from the parameters and further keywords; a graph keeps its learning
        rate.
      temperature: of the softmax.
      inputs: gives a step's normalised images, f32[B, C, H, W]; a graph replays it, random numbers anew each time.
      form: of `torch_forms.TUNED`.
      autocast: of every forward pass.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        optimizer: Callable[..., torch.optim.Optimizer],
        temperature: float,
        inputs: Callable[[], Tensor],
        form: str = "tuned",
        autocast: AbstractContextManager[Any] | None = None,
    ):
        self.teacher, self.student = frozen(teacher), channels_last(student).train()
        self.optimizer = optimizer(self.student.parameters(), fused=True)
        self._inputs, self._temperature, self._autocast = inputs, temperature, autocast or nullcontext()
        self.loss = torch.zeros_like(next(student.parameters()).flatten()[0])
        self._objective = self._kd_loss
        if form == "compiled":
            on_gpu = next(student.parameters()).is_cuda
            self._objective = torch.compile(self._kd_loss, **mode(on_gpu))
        self._form, self._run = form, None

    def step(self) -> None:
        """Takes one step; `loss` is its value before the step."""
        if self._run is None:
            self._step()  # makes the optimizer's state, and counts as a step
            self._run = graph(self._step, self._state) if self._form == "graphed" else self._step
            return
        self._run()

    def _step(self) -> None:
        if self._form == "compiled":
            torch.compiler.cudagraph_mark_step_begin()
        inputs = self._inputs().contiguous(memory_format=torch.channels_last)
        with self._autocast:
            loss = self._objective(inputs)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.loss.copy_(loss.detach())

    def _kd_loss(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            target = (self.teacher(inputs) / self._temperature).softmax(1)
        log_student = (self.student(inputs) / self._temperature).log_softmax(1)
        return functional.kl_div(log_student, target, reduction="batchmean") * self._temperature**2

    def _state(self) -> list[Tensor]:
        states = (tensor for state in self.optimizer.state.values() for tensor in state.values())
        return [self.loss, *_tensors(self.student), *(tensor for tensor in states if isinstance(tensor, Tensor))]


def mode(on_gpu: bool) -> dict[str, Any]:
    """Keywords of `torch.compile`: on a GPU it tunes by trial, on a CPU it has its defaults."""
    return {"mode": "max-autotune"} if on_gpu else {}


def graph(run: Callable[[], None], state: Callable[[], Iterable[Tensor]]) -> Callable[[], None]:
    """Returns a function that replays `run` as one CUDA graph; without a GPU, `run` itself.

    Args:
      run: reads and writes tensors that stay in their places; it is run a few times before it is captured.
      state: gives the tensors that it changes, which are put back.
    """
    if not torch.cuda.is_available():
        return run
    kept = [tensor.detach().clone() for tensor in state()]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        run()
    with torch.no_grad():
        for tensor, before in zip(state(), kept, strict=True):
            tensor.copy_(before)
    return captured.replay
