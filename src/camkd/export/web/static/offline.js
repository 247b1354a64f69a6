// Service worker: caches the files of the page for offline use. The export inserts the version and the list of files.
const VERSION = "camkd-/* version */";
const FILES = [/* files */];

self.addEventListener("install", event => event.waitUntil(
  caches.open(VERSION).then(cache => cache.addAll(FILES.map(file => new Request(file, { cache: "reload" })))).then(() => self.skipWaiting())));

self.addEventListener("activate", event => event.waitUntil(
  caches.keys().then(names => Promise.all(names.filter(name => name.startsWith("camkd-") && name !== VERSION).map(name => caches.delete(name))))
    .then(() => self.clients.claim())));

self.addEventListener("fetch", event => event.respondWith(
  caches.open(VERSION).then(cache => cache.match(event.request, { ignoreSearch: true })).then(cached => cached ?? fetch(event.request))));
