import { describeOrigin } from '@mizzen/common';
import type { Translation } from '../gateway-api/translate.ts';
import type { Finding } from './finding.ts';

/** Listeners of the Gateway API that are not served as they are written: what their conditions say, for the writer of the object. */
export function gatewayListenerFindings({ states }: Translation): Finding[] {
  return states.flatMap(({ listeners }) =>
    listeners.flatMap(({ owner, spec, path, conditions }) =>
      conditions
        .filter(({ type, status }) => (type === 'Accepted' || type === 'ResolvedRefs') && status === 'False')
        .map(({ message, reason }): Finding => {
          const object = `${owner.kind} ${owner.namespace}/${owner.name}`;
          const place = owner.origin.source === 'file' ? describeOrigin(owner.origin, path) : '';
          return { code: 'MZ0016', level: 'error', object, path, place, message: `${object}: listener ${spec.name}: ${message} (${reason}).` };
        }),
    ),
  );
}
