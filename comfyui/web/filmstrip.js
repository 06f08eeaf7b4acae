// The page's part of the pack: pipelines of the typed address, facts of a pipeline, settings, folded inputs.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { ComfyWidgets } from "../../scripts/widgets.js";

const SERVER = "FilmstripServer";
const PIPELINE = "FilmstripPipeline";
const LORA = "FilmstripLora";
const FRESH_MS = 3000;
const answers = new Map(); // address -> {at, promise}

async function post(path, body) {
  const response = await api.fetchApi(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  return await response.json();
}

function listPipelines(address, again) {
  const known = answers.get(address);
  if (known && !again && Date.now() - known.at < FRESH_MS) return known.promise;
  const promise = post("/filmstrip/pipelines", { address }).catch(() => ({ error: "ComfyUI did not answer." }));
  answers.set(address, { at: Date.now(), promise });
  return promise;
}

const widgetOf = (node, name) => node?.widgets?.find((widget) => widget.name === name);

function linkedNode(node, inputName) {
  const input = node.inputs?.find((each) => each.name === inputName);
  const links = node.graph?.links;
  const link = input?.link == null ? null : links?.get ? links.get(input.link) : links?.[input.link];
  return link ? node.graph.getNodeById(link.origin_id) : null;
}

function addressOf(pipelineNode) {
  const server = linkedNode(pipelineNode, "server");
  const address = widgetOf(server, "address")?.value;
  return typeof address === "string" ? address.trim() : "";
}

function pipelineNodes() {
  return (app.graph?._nodes ?? []).filter((node) => node.type === PIPELINE);
}

function setOptions(widget, names) {
  if (!widget || !names.length) return;
  // The chosen name stays in the list: the server decides whether it has it.
  widget.options.values = names.includes(widget.value) ? names : [...names, widget.value];
}

function show(node, text) {
  const facts = widgetOf(node, "facts_shown");
  if (facts) facts.value = text;
  node.setDirtyCanvas?.(true, true);
}

async function refresh(node, again = false) {
  const address = addressOf(node);
  if (!address) return show(node, "connect a Filmstrip Server");
  const answer = await listPipelines(address, again);
  if (answer.error) return show(node, answer.error);
  const pipelines = answer.pipelines ?? [];
  setOptions(widgetOf(node, "pipeline_id"), pipelines.map((pipeline) => pipeline.id));
  const id = widgetOf(node, "other_id")?.value?.trim() || widgetOf(node, "pipeline_id")?.value;
  const found = pipelines.find((pipeline) => pipeline.id === id);
  show(node, found ? (found.state === "ready" ? "" : `${found.state}: `) + found.summary : "the server does not list it");
  const loras = [...new Set(pipelines.flatMap((pipeline) => pipeline.loras))];
  for (const other of app.graph?._nodes ?? []) {
    if (other.type === LORA) setOptions(widgetOf(other, "lora"), loras);
  }
}

// A widget that shows text is not part of the workflow.
function addFacts(node) {
  const facts = node.addWidget("text", "facts_shown", "", () => {}, { serialize: false });
  facts.serialize = false;
  facts.label = "facts";
  facts.options.read_only = true;
  const button = node.addWidget("button", "refresh", null, () => refresh(node, true), { serialize: false });
  button.serialize = false;
}

function after(widget, then) {
  if (!widget) return;
  const before = widget.callback;
  widget.callback = function (...values) {
    const result = before?.apply(this, values);
    then();
    return result;
  };
}

// Nodes 2.0 folds inputs marked as advanced by itself; the classic canvas only does so with this property.
function fold(node, defaults) {
  let changed = false;
  for (const widget of node.widgets ?? []) {
    if (!widget.options?.advanced && !defaults[widget.name]?.advanced) continue;
    widget.advanced = true;
    if (!Object.getOwnPropertyDescriptor(widget, "computeSize")?.get) {
      // The classic canvas leaves room for a folded widget, unless it says that it needs none (4 pixels are added to that).
      let own = widget.computeSize;
      Object.defineProperty(widget, "computeSize", {
        get: () => (node.showAdvanced || globalThis.LiteGraph?.vueNodesMode ? own : () => [0, -4]),
        set: (value) => { own = value; },
        configurable: true,
      });
    }
    const normal = defaults[widget.name]?.default;
    if (normal !== undefined && widget.value !== normal) changed = true;
  }
  node.showAdvanced = changed;
  return changed;
}

function specOf(nodeData) {
  const spec = {};
  for (const kind of ["required", "optional"]) {
    for (const [name, [type, options]] of Object.entries(nodeData.input?.[kind] ?? {})) {
      spec[name] = { advanced: options?.advanced, default: options?.default ?? (Array.isArray(type) ? type[0] : undefined) };
    }
  }
  return spec;
}

// Newer pages drop a node's text when the job ends: an error, or how long it took, is kept here.
const lastTexts = new Map(); // node id -> text

function keepText(node, text) {
  let kept = widgetOf(node, "filmstrip_status");
  if (!text) {
    if (kept) kept.value = "";
    return;
  }
  if (widgetOf(node, "$$node-text-preview")) return; // this page keeps it itself
  if (node.type === PIPELINE) return show(node, text); // it has a line for that
  if (!kept) {
    const spec = ["STRING", { multiline: true, serialize: false }];
    kept = ComfyWidgets.STRING(node, "filmstrip_status", spec, app).widget;
    kept.serialize = false;
    kept.options.serialize = false;
    kept.options.read_only = true;
    kept.label = "status";
    const box = kept.element ?? kept.inputEl;
    if (box) box.readOnly = true;
  }
  kept.value = text;
  node.setDirtyCanvas?.(true, true);
}

// Nodes 2.0 goes on showing a preview, as if it were the finished video. Its store is not part of the page's API, so
// without it nothing happens.
function dropPreview(id) {
  const page = document.querySelector("#vue-app")?.__vue_app__;
  const outputs = page?.config?.globalProperties?.$pinia?._s?.get("nodeOutput");
  outputs?.revokePreviewsByExecutionId?.(id);
  if (app.nodePreviewImages) delete app.nodePreviewImages[id];
}

function followTexts() {
  const nodeOf = (id) => app.graph?.getNodeById?.(Number(String(id).split(":").pop()));
  api.addEventListener("progress_text", (event) => {
    const { nodeId, text } = event.detail ?? {};
    const node = nodeOf(nodeId);
    if (!node?.type?.startsWith?.("Filmstrip")) return;
    lastTexts.set(String(nodeId), text);
    keepText(node, "");
    // The page shows a preview as a video where the node has one, and the video as a preview.
    if (text === "starting" && app.nodeOutputs?.[nodeId]) {
      delete app.nodeOutputs[nodeId];
      node.previewMediaType = undefined;
    }
    if (text.startsWith("downloading")) dropPreview(nodeId);
  });
  for (const end of ["execution_success", "execution_error", "execution_interrupted"]) {
    api.addEventListener(end, () => {
      setTimeout(() => {
        for (const [id, text] of lastTexts) {
          const node = nodeOf(id);
          if (node) keepText(node, text);
        }
        lastTexts.clear();
      }, 500);
    });
  }
}

app.registerExtension({
  name: "filmstrip",
  async setup() {
    followTexts();
  },
  settings: [
    {
      id: "Filmstrip.Server.Address",
      category: ["Filmstrip", "Server", "Address"],
      name: "Address of the server",
      tooltip: "New Server nodes have it. It is not part of workflows.",
      type: "text",
      defaultValue: "",
      onChange: (value, old) => {
        if (old !== undefined && typeof value === "string" && value !== old) saveSettings({ address: value });
      },
    },
    {
      id: "Filmstrip.Server.Key",
      category: ["Filmstrip", "Server", "Key"],
      name: "API key",
      tooltip: "Kept by ComfyUI in a file of its own, for this address only. It is never shown again.",
      type: () => {
        const input = document.createElement("input");
        input.type = "password";
        input.autocomplete = "off";
        input.placeholder = "paste the key, then press Enter";
        input.className = "p-inputtext p-component";
        input.addEventListener("change", async () => {
          const address = app.ui?.settings?.getSettingValue?.("Filmstrip.Server.Address") || undefined;
          const answer = await saveSettings({ address, token: input.value });
          input.value = "";
          input.placeholder = answer.error ?? (answer.has_key ? "a key is saved" : "no key is saved");
        });
        post("/filmstrip/settings", {}).then((answer) => {
          if (answer.has_key) input.placeholder = "a key is saved; paste another to replace it";
        }, () => {});
        return input;
      },
      defaultValue: "",
    },
  ],
  async beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name?.startsWith("Filmstrip")) return;
    const spec = specOf(nodeData);
    const created = nodeType.prototype.onNodeCreated;
    nodeType.prototype.onNodeCreated = function (...values) {
      const result = created?.apply(this, values);
      if (nodeData.name === PIPELINE) {
        addFacts(this);
        after(widgetOf(this, "pipeline_id"), () => refresh(this));
        after(widgetOf(this, "other_id"), () => refresh(this));
      }
      if (nodeData.name === SERVER) {
        after(widgetOf(this, "address"), () => pipelineNodes().forEach((node) => refresh(node)));
      }
      fold(this, spec);
      this.setSize?.([Math.max(this.size[0], 300), this.computeSize()[1]]);
      return result;
    };
    const configured = nodeType.prototype.onConfigure;
    nodeType.prototype.onConfigure = function (saved, ...values) {
      const result = configured?.call(this, saved, ...values);
      fold(this, spec);
      // The size that was saved, not the one that the node had before its inputs were folded.
      const [width, height] = [saved?.size?.[0] ?? this.size[0], saved?.size?.[1] ?? 0];
      this.setSize?.([width, Math.max(height, this.computeSize()[1])]);
      return result;
    };
    if (nodeData.name === PIPELINE) {
      const connected = nodeType.prototype.onConnectionsChange;
      nodeType.prototype.onConnectionsChange = function (...values) {
        const result = connected?.apply(this, values);
        queueMicrotask(() => refresh(this));
        return result;
      };
    }
  },
  async refreshComboInNodes() {
    answers.clear();
    for (const node of pipelineNodes()) refresh(node, true);
  },
  async afterConfigureGraph() {
    for (const node of pipelineNodes()) refresh(node);
  },
});

async function saveSettings(values) {
  const body = { ...values };
  if (body.address === undefined) body.address = (await post("/filmstrip/settings", {})).address ?? "";
  const answer = await post("/filmstrip/settings", body);
  answers.clear();
  for (const node of pipelineNodes()) refresh(node, true);
  return answer;
}
