import { fromBinary, fromJson, toBinary, toJson } from '@bufbuild/protobuf';
import { StructSchema } from '@bufbuild/protobuf/wkt';
import { utf8Bytes, verifiedValue } from '../message/header-bytes.ts';
import { fieldLines } from '../message/trailer-lines.ts';
import type { Introduction } from '../upstream/upstream-stream.ts';

/** Who a peer is, beyond its identity: the labels that Istio's metrics carry. */
export interface PeerMetadata {
  readonly workload: string;
  readonly namespace: string;
  readonly app: string;
  readonly version: string;
  readonly canonicalService: string;
  readonly canonicalRevision: string;
  readonly cluster: string;
  /** The SPIFFE identity by which it is expected; `unknown` when there is none. */
  readonly principal: string;
}

export const unknownPeer: PeerMetadata = {
  workload: 'unknown',
  namespace: 'unknown',
  app: 'unknown',
  version: 'unknown',
  canonicalService: 'unknown',
  canonicalRevision: 'latest',
  cluster: 'unknown',
  principal: 'unknown',
};

/** The headers by which sidecars tell each other who they are (Istio's metadata exchange): a base64 google.protobuf.Struct. */
export const peerMetadataHeader = 'x-envoy-peer-metadata';
export const peerMetadataIdHeader = 'x-envoy-peer-metadata-id';

/** `id` is how other proxies call it. */
export function introductionOf(peer: PeerMetadata, id: string): Introduction {
  const fields = [
    [peerMetadataHeader, encodePeerMetadata(peer)],
    [peerMetadataIdHeader, verifiedValue(utf8Bytes(id))],
  ] as const;
  return { fields, text: fieldLines(fields) };
}

export function encodePeerMetadata(peer: PeerMetadata): string {
  const struct = fromJson(StructSchema, {
    NAME: peer.workload,
    NAMESPACE: peer.namespace,
    WORKLOAD_NAME: peer.workload,
    CLUSTER_ID: peer.cluster,
    LABELS: {
      app: peer.app,
      version: peer.version,
      'service.istio.io/canonical-name': peer.canonicalService,
      'service.istio.io/canonical-revision': peer.canonicalRevision,
    },
  });
  return Buffer.from(toBinary(StructSchema, struct)).toString('base64');
}

const maxHeaderBytes = 8 * 1024;
const maxCached = 1_000;

/** Decodes the header of peers; the same text is decoded once. */
export class PeerMetadataReader {
  readonly #known: Map<string, PeerMetadata>;

  constructor() {
    this.#known = new Map();
  }

  read(header: string | undefined): PeerMetadata {
    if (header === undefined) return unknownPeer;
    const known = this.#known.get(header);
    if (known !== undefined) return known;
    const peer = decode(header);
    if (this.#known.size >= maxCached) this.#known.clear();
    this.#known.set(header, peer);
    return peer;
  }
}

function decode(header: string): PeerMetadata {
  if (header.length > maxHeaderBytes) return unknownPeer;
  try {
    const fields = toJson(StructSchema, fromBinary(StructSchema, Buffer.from(header, 'base64'))) as Record<string, unknown>;
    const labels = (typeof fields['LABELS'] === 'object' && fields['LABELS'] !== null ? fields['LABELS'] : {}) as Record<string, unknown>;
    const text = (value: unknown, otherwise: string) => (typeof value === 'string' && value !== '' ? value.slice(0, 253) : otherwise);
    const workload = text(fields['WORKLOAD_NAME'], 'unknown');
    const app = text(labels['app'], 'unknown');
    const version = text(labels['version'], 'unknown');
    return {
      workload,
      namespace: text(fields['NAMESPACE'], 'unknown'),
      app,
      version,
      canonicalService: text(labels['service.istio.io/canonical-name'], app === 'unknown' ? workload : app),
      canonicalRevision: text(labels['service.istio.io/canonical-revision'], version === 'unknown' ? 'latest' : version),
      cluster: text(fields['CLUSTER_ID'], 'unknown'),
      principal: 'unknown',
    };
  } catch {
    return unknownPeer; // a peer that writes nonsense is an unknown one
  }
}
