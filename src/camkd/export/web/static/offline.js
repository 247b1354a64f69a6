// Service worker: serves the files of the page from the network, and without a network from a cache of the same version.
// The export inserts the version and the list of files.
const VERSION = "/* version */";
const FILES = [/* files */];
const SCOPE = self.registration.scope;
const CACHE = `camkd ${VERSION} ${SCOPE}`;  // one cache per page: a server may have several pages

self.addEventListener("install", event => event.waitUntil(
  caches.open(CACHE).then(cache => cache.addAll(FILES.map(file => new Request(file, { cache: "reload" })))).then(() => self.skipWaiting())));

self.addEventListener("activate", event => event.waitUntil(
  caches.keys().then(names => Promise.all(names.filter(isOutdated).map(name => caches.delete(name)))).then(() => self.clients.claim())));

self.addEventListener("fetch", event => {
  const file = pathInPage(event.request.url);
  if (FILES.includes(file)) event.respondWith(file.startsWith("runtime/") ? cacheFirst(event.request) : networkFirst(event.request));
});

const isOutdated = name => name.startsWith("camkd ") && name.endsWith(` ${SCOPE}`) && name !== CACHE;

function pathInPage(url) {
  const { origin, pathname } = new URL(url);
  return (origin + pathname).slice(SCOPE.length) || ".";
}

// Another page may be served at this address now, even one with older files.
const networkFirst = request => fetch(request, { cache: "no-store" }).catch(() => cached(request).then(response => response ?? Response.error()));

// The path of the runtime contains its version.
const cacheFirst = request => cached(request).then(response => response ?? fetch(request));

// A request of the page names the version that it needs, so that names of classes never meet the model of another version.
async function cached(request) {
  const version = new URL(request.url).searchParams.get("version") ?? VERSION;
  return version === VERSION ? (await caches.open(CACHE)).match(request, { ignoreSearch: true }) : undefined;
}
