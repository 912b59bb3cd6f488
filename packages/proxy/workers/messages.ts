import type { ResourceType } from '@mizzen/envoy-api';
import type { Spent } from '../filters/rate-limit/shared-spending.ts';
import type { OverloadSettings } from '../overload/overload-manager.ts';
import type { PeerMetadata } from '../telemetry/peer-metadata.ts';
import type { StatsSnapshot } from '../telemetry/stats-snapshot.ts';
import type { KeyPair, TrustedRoots } from '../tls/secret-store.ts';

/**
 * What the main process of a proxy and its workers say to each other over Node's IPC channel. Sockets travel beside the messages named
 * `socket`. A worker's channel belongs to its parent alone; what comes on it is trusted.
 */
export interface PackedResource {
  readonly typeUrl: string;
  readonly value: Uint8Array;
}

export type ToWorker =
  | {
      readonly kind: 'start';
      readonly self: PeerMetadata;
      readonly selfId: string;
      readonly accessLogFile: string | undefined;
      readonly overload: OverloadSettings;
      readonly sessionTicketKeys: Uint8Array;
      readonly drainMs: number;
      readonly logLevel: 'debug' | 'info' | 'warn' | 'error';
      readonly index: number;
      /** Listening sockets will come from a proxy that this one replaces. */
      readonly expectsSockets: boolean;
      /** Folders in which configuration may name Unix sockets; undefined: all. */
      readonly socketFolders: readonly string[] | undefined;
    }
  | { readonly kind: 'resources'; readonly type: ResourceType; readonly resources: readonly PackedResource[] }
  | { readonly kind: 'key-pair'; readonly name: string; readonly pair: KeyPair }
  | { readonly kind: 'roots'; readonly name: string; readonly roots: TrustedRoots }
  | { readonly kind: 'generic-secret'; readonly name: string; readonly value: Uint8Array }
  | { readonly kind: 'secret-withdrawn'; readonly name: string }
  /** Beside it comes a listening socket; `path` of a Unix socket. */
  | { readonly kind: 'socket'; readonly path?: string | undefined }
  | { readonly kind: 'no-more-sockets' }
  | { readonly kind: 'hand-over' }
  /** What another worker has taken of shared buckets. */
  | { readonly kind: 'spent'; readonly spent: readonly Spent[] }
  | { readonly kind: 'stats'; readonly id: number }
  | { readonly kind: 'close'; readonly drainMs: number; readonly acceptMs: number };

export type FromWorker =
  | { readonly kind: 'ready' }
  /** All but its sockets is there. */
  | { readonly kind: 'prepared' }
  /** A part of the configuration was lost: all of it is needed again. */
  | { readonly kind: 'incomplete' }
  | { readonly kind: 'refused'; readonly type: ResourceType; readonly reason: string }
  | { readonly kind: 'socket'; readonly path?: string | undefined }
  | { readonly kind: 'handed-over' }
  /** For the other workers. */
  | { readonly kind: 'spent'; readonly spent: readonly Spent[] }
  | { readonly kind: 'stats'; readonly id: number; readonly stats: StatsSnapshot };

/** Between a proxy and the one that replaces it. The successor is a child of its predecessor, which is how sockets can reach it. */
export type ToSuccessor = { readonly kind: 'socket'; readonly path?: string | undefined } | { readonly kind: 'all-sockets' };
export type FromSuccessor = { readonly kind: 'take-over' } | { readonly kind: 'taken-over' } | { readonly kind: 'failed'; readonly reason: string };
