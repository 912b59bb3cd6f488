import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Kind, Resource } from '@mizzen/api';
import { errorBoundary } from '@mizzen/common';
import { ApiError, badRequest } from '../api-error.ts';
import { type Change, type ConfigStore, RevisionTooOld, type StoredResource } from '../config-store.ts';
import { accessConfigMap } from './access-bindings.ts';
import { apiVersionFor } from './discovery.ts';
import type { Predicate } from './selectors.ts';
import { toTable } from './table.ts';

const boundary = errorBoundary('api.watch');

export interface WatchCall {
  readonly request: IncomingMessage;
  readonly response: ServerResponse;
  readonly url: URL;
  readonly kind: Kind;
  readonly version: string;
  /** undefined: all namespaces. */
  readonly namespace: string | undefined;
  readonly predicate: Predicate;
  readonly store: ConfigStore;
  /** Why the caller may not see more of it; asked while the watch lasts. */
  readonly refusal: () => Promise<ApiError | undefined>;
  /** Called after each event that was written. */
  readonly onWrite: () => void;
  /** As kubectl asks for it, where it does. */
  readonly table: { readonly includeObject: string } | undefined;
  readonly now: () => Date;
  /** A resource in the version that was asked for. */
  readonly present: (resource: Resource) => Resource;
}

const bookmarkIntervalMs = 30_000;
/** A watch ends so long after its caller has lost the right to it. */
const maxUncheckedMs = 5_000;
const bufferLimitBytes = 16 * 1024 * 1024;

/** Answers a watch of Kubernetes' API: what there is, where no revision is given, and then each change, a line of JSON each, until the client has gone or its time is over. */
export async function watchResources({
  request,
  response,
  url,
  kind,
  version,
  namespace,
  predicate,
  store,
  refusal,
  onWrite,
  table,
  now,
  present,
}: WatchCall): Promise<void> {
  const given = url.searchParams.get('resourceVersion') ?? '';
  const sendsInitialEvents = initialEventsOf(url);
  let sentHeader = false;
  response.writeHead(200, { 'content-type': 'application/json', 'cache-control': 'no-cache' });
  response.flushHeaders();
  const send = (type: string, object: unknown) => {
    response.write(`${JSON.stringify({ type, object })}\n`);
    // A client that does not read is cut off rather than buffered for: it will list and watch again.
    if (response.writableLength > bufferLimitBytes) response.destroy();
    onWrite();
  };
  const sendResource = (type: string, resource: Resource) => {
    const presented = present(resource);
    if (!table) return send(type, presented);
    send(type, toTable(kind, [presented], resource.metadata.resourceVersion ?? '', table.includeObject, now(), !sentHeader));
    sentHeader = true;
  };
  const sendBookmark = (revision: number, annotations?: Readonly<Record<string, string>>) =>
    send('BOOKMARK', {
      kind: kind.kind,
      apiVersion: apiVersionFor(kind, version),
      metadata: { resourceVersion: String(revision), ...(annotations ? { annotations } : {}) },
    });
  const isOurs = (stored: StoredResource) =>
    stored.key.group === kind.group && stored.key.kind === kind.kind && (namespace === undefined || stored.key.namespace === namespace);
  const onChange = (change: Change) => {
    if (isAccess(change.stored)) checkSoon();
    if (!isOurs(change.stored)) return;
    const matches = predicate(change.stored.resource);
    const matched = change.previous !== undefined && predicate(change.previous.resource);
    if (change.type === 'deleted') {
      if (matched) sendResource('DELETED', change.stored.resource);
    } else if (matches) sendResource(matched ? 'MODIFIED' : 'ADDED', change.stored.resource);
    else if (matched) sendResource('DELETED', change.stored.resource);
  };

  let stop = () => {};
  let isChecking = false;
  const check = async () => {
    if (isChecking) return;
    isChecking = true;
    const refused = await refusal();
    isChecking = false;
    if (refused === undefined || response.writableEnded) return;
    stop();
    send('ERROR', refused.toStatus());
    response.end();
  };
  const checkSoon = () => boundary.start(check, () => response.destroy());

  let since = Number(given);
  if (sendsInitialEvents !== false && (sendsInitialEvents || given === '' || given === '0')) {
    const { items, revision } = await store.list(kind.group, kind.kind, namespace);
    for (const stored of items) if (predicate(stored.resource)) sendResource('ADDED', stored.resource);
    if (given !== '' && (!Number.isSafeInteger(since) || since > revision)) {
      send('ERROR', newerThanStore(given, revision).toStatus());
      return void response.end();
    }
    since = revision;
    // client-go (WatchList) waits for this bookmark, whether bookmarks were requested or not.
    if (sendsInitialEvents) sendBookmark(revision, { 'k8s.io/initial-events-end': 'true' });
  } else if (given === '' || given === '0') since = store.revision();
  else if (!Number.isSafeInteger(since) || since < 0) {
    send('ERROR', badRequest(`resourceVersion ${JSON.stringify(given)} is not a number`).toStatus());
    return void response.end();
  }
  if (since > store.revision()) {
    // The store was rolled back or replaced: the client has to list again.
    send('ERROR', newerThanStore(given, store.revision()).toStatus());
    return void response.end();
  }
  // The client has gone while its watch was prepared.
  if (response.destroyed) return;
  try {
    // A client that missed a change lists and watches again.
    stop = store.watch(
      since,
      boundary.wrap(onChange, () => response.destroy()),
    );
  } catch (error) {
    if (!(error instanceof RevisionTooOld)) throw error;
    send('ERROR', new ApiError(410, 'Expired', `too old resource version: ${given} (${error.oldest})`).toStatus());
    return void response.end();
  }
  const wantsBookmarks = isTrue(url.searchParams.get('allowWatchBookmarks'));
  const bookmark = boundary.every(bookmarkIntervalMs, () => {
    if (wantsBookmarks) sendBookmark(store.revision());
  });
  const recheck = boundary.every(maxUncheckedMs, checkSoon);
  const timeoutSeconds = Math.min(Number(url.searchParams.get('timeoutSeconds')) || 1800, 3600);
  const deadline = boundary.after(timeoutSeconds * 1000, () => response.end());
  request.socket.setTimeout(0);
  boundary.own(response).on('close', () => {
    stop();
    clearInterval(bookmark);
    clearInterval(recheck);
    clearTimeout(deadline);
  });
}

/**
 * `sendInitialEvents` with Kubernetes' rules (ListOptions): it needs `resourceVersionMatch=NotOlderThan`, which is allowed only with it.
 * Undefined: not given.
 */
function initialEventsOf({ searchParams }: URL): boolean | undefined {
  const given = searchParams.get('sendInitialEvents');
  const match = searchParams.get('resourceVersionMatch');
  const refuse = (message: string) => new ApiError(422, 'Invalid', `ListOptions is invalid: ${message}`);
  if (given === null) {
    if (match !== null) throw refuse('resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided');
    return undefined;
  }
  if (match === null) throw refuse('resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan');
  if (match !== 'NotOlderThan') throw refuse(`resourceVersionMatch: Unsupported value: ${JSON.stringify(match)}: supported values: "NotOlderThan"`);
  return isTrue(given);
}

const newerThanStore = (given: string, revision: number) =>
  new ApiError(410, 'Expired', `resource version ${given} is not known: the newest is ${revision}; the store was rolled back or replaced, list again`);

const isAccess = ({ key }: StoredResource) => key.kind === 'ConfigMap' && key.namespace === accessConfigMap.namespace && key.name === accessConfigMap.name;

export const isTrue = (text: string | null) => text === 'true' || text === '1';
