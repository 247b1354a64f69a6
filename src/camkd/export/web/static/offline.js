// Keeps the page's files, so that it opens without a network. Written out by the export: files and version.
const VERSION = "camkd-/* version */", FILES = [/* files */];

self.addEventListener("install", event => event.waitUntil(
  caches.open(VERSION).then(cache => cache.addAll(FILES.map(file => new Request(file, { cache: "reload" })))).then(() => self.skipWaiting())));

self.addEventListener("activate", event => event.waitUntil(
  caches.keys().then(names => Promise.all(names.filter(name => name.startsWith("camkd-") && name !== VERSION).map(name => caches.delete(name))))
    .then(() => self.clients.claim())));

self.addEventListener("fetch", event => event.respondWith(
  caches.open(VERSION).then(cache => cache.match(event.request, { ignoreSearch: true })).then(kept => kept ?? fetch(event.request))));
