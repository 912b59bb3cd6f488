import type { TLSSocket } from 'node:tls';
import type { Resource } from '@mizzen/api';
import type { Logger } from '@mizzen/common';
import type { ResourceRegistry } from '../resource-registry.ts';
import type { Caller } from './access-control.ts';
import type { AuditLog } from './audit-log.ts';
import type { Authenticator } from './authenticator.ts';
import type { HeldRole } from './escalation.ts';

/** What the API server of ./api-server.ts is made of. */
export interface ApiServerOptions {
  readonly registry: ResourceRegistry;
  readonly host: string;
  readonly port: number;
  readonly certificate: ServerCertificate;
  readonly authenticator: Pick<Authenticator, 'callerOf'>;
  /** The roles that service accounts hold: who issues an identity must hold as much. */
  readonly heldRoles?: () => Promise<readonly HeldRole[]>;
  readonly audit: Pick<AuditLog, 'write'>;
  /** Where the API is served without TLS and token, for those who may open the file: the same user. */
  readonly socketPath?: string | undefined;
  /** Called with each TLS connection. */
  readonly onConnection?: (socket: TLSSocket) => void;
  readonly logger: Logger;
  /** Creates a token for a service account (the TokenRequest subresource). */
  readonly createToken: (
    namespace: string,
    serviceAccount: string,
    audiences: readonly string[],
    seconds: number,
    isOnce: boolean,
  ) => Promise<{ token: string; expiresAt: Date }>;
  /** Whose a token for an audience is (TokenReview): its user name. Throws MizzenError. */
  readonly reviewToken?: (token: string, audience: string | undefined) => Promise<string>;
  /** Answers below /mizzen/v1/: the mesh's own state. Resolves to undefined for paths it does not know. */
  readonly meshState: (path: readonly string[], caller: Caller) => Promise<unknown>;
  /** What `/metrics` has, for every caller who is authenticated. */
  readonly metrics?: () => string;
  /** What every caller may read, by path: JSON. */
  readonly published?: Readonly<Record<string, () => Promise<string>>>;
  /** Does what is asked below /mizzen/v1/ by POST. Resolves to undefined for paths it does not know; throws MizzenError for what it will not do. */
  readonly meshAction?: (path: readonly string[], body: Readonly<Record<string, unknown>>) => Promise<unknown>;
  /** What the writer of a resource should know; sent as Warning headers, which kubectl prints. */
  readonly warnings?: (resource: Resource) => Promise<readonly string[]>;
  readonly now?: () => Date;
}

/** `ca`: by which clients may prove who they are. */
export interface ServerCertificate {
  readonly cert: string;
  readonly key: string;
  readonly ca: string[];
}
