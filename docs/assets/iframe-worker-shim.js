// Search without a server. Browsers refuse `new Worker("file:...")`, so on pages that
// were opened from a folder the theme's search runs in a hidden frame instead, behind
// the members of `Worker` that the theme uses. The theme looks for the name
// `IFrameWorker`; its own stand-in would be fetched from another site.
class IFrameWorker extends EventTarget {
  constructor(url) {
    super();
    const frame = document.createElement("iframe");
    frame.hidden = true;
    document.body.append(frame);
    this.inside = frame.contentWindow;
    this.inside.document.open();
    this.inside.document.close();
    this.inside.postMessage = (data) =>
      this.dispatchEvent(new MessageEvent("message", { data }));
    this.inside.importScripts = (...urls) =>
      urls.reduce((before, next) => before.then(() => this.load(next)), Promise.resolve());
    this.ready = this.load(new URL(url, document.baseURI).href);
  }

  load(url) {
    return new Promise((resolve, reject) => {
      const script = this.inside.document.createElement("script");
      script.src = url;
      script.onload = resolve;
      script.onerror = () => reject(new Error(`can't load ${url}`));
      this.inside.document.head.append(script);
    });
  }

  postMessage(data) {
    this.ready.then(() =>
      this.inside.dispatchEvent(new MessageEvent("message", { data }))
    );
  }

  terminate() {
    this.inside.frameElement.remove();
  }
}

if (location.protocol === "file:") {
  window.IFrameWorker = IFrameWorker;
  window.Worker = IFrameWorker;
}
