import type { CloudEvent } from './cloud-events.ts';

export type DeliveryStatus = 'SUCCESS' | 'RETRY' | 'DROP';

export interface DeliveryOutcome {
  readonly status: DeliveryStatus;
  /** For logs and metrics: why it is not a success. */
  readonly reason: string;
}

export interface DeliveredEvent {
  readonly path: string;
  readonly pubsub: string;
  readonly topic: string;
  readonly event: CloudEvent;
  /** Its JSON. */
  readonly json: Buffer;
  /** Who published it, what trace it is of, and what the publisher added. */
  readonly headers: Readonly<Record<string, string>>;
}

/** The way to an application's handlers. */
export interface AppChannel {
  deliver(event: DeliveredEvent, timeoutMs: number, done: (outcome: DeliveryOutcome) => void): void;
  deliverBulk(
    path: string,
    pubsub: string,
    topic: string,
    events: readonly (DeliveredEvent & { readonly entryId: string })[],
    timeoutMs: number,
    done: (outcomes: ReadonlyMap<string, DeliveryOutcome>) => void,
  ): void;
}

/** The path of a gRPC handler that was declared without one; it is sent as ''. */
export const emptyPath = '\0';

export const success: DeliveryOutcome = { status: 'SUCCESS', reason: '' };
export const retry = (reason: string): DeliveryOutcome => ({ status: 'RETRY', reason });
export const drop = (reason: string): DeliveryOutcome => ({ status: 'DROP', reason });

/** What an answer's status word means; an empty answer is a success (Dapr pub/sub API, "Expected HTTP response"). */
export function outcomeOfBody(body: Buffer): DeliveryOutcome {
  if (body.length === 0) return success;
  let status: unknown;
  try {
    status = (JSON.parse(body.toString('utf8')) as { readonly status?: unknown } | null)?.status;
  } catch {
    // Something else than a status: 2xx has said enough.
    return success;
  }
  switch (status) {
    case undefined:
    case '':
    case 'SUCCESS':
      return success;
    case 'RETRY':
      return retry('the application asked for it');
    case 'DROP':
      return drop('the application asked for it');
    default:
      return retry(`the application answered with the status ${JSON.stringify(status).slice(0, 40)}`);
  }
}
