import type { Logger } from '@mizzen/common';
import { PrivateLog } from './private-log.ts';

/** One certificate or token that was issued, or a request for one that was refused. */
export interface Issuance {
  readonly time: string;
  readonly outcome: 'issued' | 'refused';
  readonly identity: string;
  /** How the caller has proved who it is. */
  readonly by: 'certificate' | 'token';
  /** Who asked for it, for another. */
  readonly forwarder?: string;
  readonly peer: string;
  /** Of a token. */
  readonly audiences?: readonly string[];
  readonly serial?: string;
  readonly notAfter?: string;
  readonly generation?: string;
  readonly reason?: string;
}

const maxBytes = 10 * 1024 * 1024;

/** The audit log of the authority: an entry for each certificate. */
export class IssuanceLog extends PrivateLog<Issuance> {
  constructor(path: string, logger: Logger) {
    super(path, maxBytes, 'the log of issued certificates', logger);
  }
}
