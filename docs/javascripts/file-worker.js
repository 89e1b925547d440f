// Search runs in a worker, and browsers start no worker on a page that was opened from disk. There, the script of the
// worker runs in a hidden frame. Both sides keep the interface of a worker: postMessage, "message" events, terminate.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const script = new URL(url, location.href).href.replaceAll('"', "%22")
      this.pending = []
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      this.frame.srcdoc =
        "<script>" +
        "const receive = self.postMessage.bind(self);" +
        'self.deliver = data => receive(data, "*");' +
        'self.postMessage = data => parent.postMessage(data, "*");' +
        `</script><script src="${script}"></script>`
      this.frame.onload = () => {
        this.pending.forEach(data => this.frame.contentWindow.deliver(data))
        this.pending = null
      }
      this.listen = event => {
        if (event.source !== this.frame.contentWindow) return
        const copy = new MessageEvent("message", { data: event.data })
        this.dispatchEvent(copy)
        if (this.onmessage) this.onmessage(copy)
      }
      window.addEventListener("message", this.listen)
      document.documentElement.append(this.frame)
    }

    postMessage(data) {
      if (this.pending) this.pending.push(data)
      else this.frame.contentWindow.deliver(data)
    }

    terminate() {
      window.removeEventListener("message", this.listen)
      this.frame.remove()
    }
  }
}
