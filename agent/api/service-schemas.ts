/** The types of service-contract.ts as schemas: as schemas.ts, which they are a part of. */
import { z } from 'zod'
import { LABEL_KEY_PATTERN, LABEL_VALUE_PATTERN, LABELS_MAX, NAME_PATTERN } from '../../protocols/membership/words.ts'
import type { ErrorLine } from './contract.ts'
import type {
  AddServiceRequest,
  ConnectionList,
  DrainRequest,
  ForwardEvent,
  ForwardRequest,
  InstanceView,
  ServiceDetail,
  ServiceList,
  ServiceView,
  TraceResult,
} from './service-contract.ts'

/** The longest of `service.node.network.internal`. */
const NAME_LENGTH_MAX = 256
const HOST_LENGTH_MAX = 253
const WEIGHT_MAX = 1_000

const count = z.int().min(0)
const port = z.int().min(1).max(65_535)
const proto = z.enum(['tcp', 'udp', 'http'])
const name = z.string().min(1).max(NAME_LENGTH_MAX)
const network = z.string().min(1).max(NAME_LENGTH_MAX).exactOptional()
const host = z
  .string()
  .regex(/^[0-9A-Za-z.:_-]{1,253}$/, 'not a host')
  .max(HOST_LENGTH_MAX)
  .exactOptional()
const serviceName = z.string().regex(NAME_PATTERN, 'cannot be the name of a service: a-z, 0-9 and -, at most 63')
const labels = z
  .record(z.string().regex(LABEL_KEY_PATTERN, 'not a label'), z.string().regex(LABEL_VALUE_PATTERN, 'not a value'))
  .refine((all) => Object.keys(all).length <= LABELS_MAX, `more than ${LABELS_MAX} labels`)

export const servicesRequest = z.strictObject({ network })
export const serviceRequest = z.strictObject({ name, network })
export const addServiceRequest: z.ZodType<AddServiceRequest> = z.strictObject({
  name: serviceName,
  host,
  port,
  proto: proto.exactOptional(),
  check: z
    .string()
    .regex(/^(tcp|none|http:\/[!-~]{0,255})$/, 'there are tcp, http:/path and none')
    .exactOptional(),
  labels: labels.exactOptional(),
  weight: z.int().min(0).max(WEIGHT_MAX).exactOptional(),
  proxyProtocol: z.boolean().exactOptional(),
  network,
})
export const drainRequest: z.ZodType<DrainRequest> = z.strictObject({
  name,
  undo: z.boolean().exactOptional(),
  network,
})
export const traceRequest = z.strictObject({ name })
export const forwardRequest: z.ZodType<ForwardRequest> = z.strictObject({
  name,
  host,
  port: z.int().min(0).max(65_535).exactOptional(),
  sticky: z.boolean().exactOptional(),
})

const state = z.enum(['healthy', 'ill', 'draining', 'unknown'])
export const instance: z.ZodType<InstanceView> = z.object({
  id: z.string(),
  network: z.string(),
  service: z.string(),
  peerId: z.string(),
  node: z.string(),
  proto,
  port,
  labels: z.record(z.string(), z.string()),
  weight: count,
  state,
  zone: z.string().nullable(),
  rttMs: z.number().min(0).nullable(),
  own: z.boolean(),
})
const serviceFields = {
  network: z.string(),
  name: z.string(),
  address: z.string(),
  proto,
  instanceCount: count,
  healthyCount: count,
  offer: z
    .object({
      host: z.string(),
      port,
      check: z.string(),
      proxyProtocol: z.boolean(),
      declared: z.boolean(),
      state,
      why: z.string().exactOptional(),
      unseen: z.string().exactOptional(),
    })
    .nullable(),
}
export const service: z.ZodType<ServiceView> = z.object(serviceFields)
export const services: z.ZodType<ServiceList> = z.object({ services: z.array(service) })
export const serviceDetail: z.ZodType<ServiceDetail> = z.object({ ...serviceFields, instances: z.array(instance) })

export const connections: z.ZodType<ConnectionList> = z.object({
  connections: z.array(
    z.object({
      direction: z.enum(['in', 'out']),
      network: z.string(),
      service: z.string(),
      peerId: z.string(),
      node: z.string(),
      carrier: z.enum(['tcp', 'udp']),
      path: z.string(),
      rule: z.string().nullable(),
      seconds: count,
      idleSeconds: count,
      sentBytes: count,
      receivedBytes: count,
    }),
  ),
})

export const trace: z.ZodType<TraceResult> = z.object({
  name: z.string(),
  ok: z.boolean(),
  steps: z.array(
    z.object({
      step: z.enum(['resolve', 'rule', 'choose', 'reach', 'open']),
      ms: z.number().min(0),
      ok: z.boolean(),
      text: z.string(),
    }),
  ),
})

export const forwardEvent: z.ZodType<ForwardEvent | ErrorLine> = z.union([
  z.object({
    type: z.literal('listening'),
    name: z.string(),
    host: z.string(),
    port: count,
    proto: z.enum(['tcp', 'udp']),
  }),
  z.object({ type: z.literal('refused'), message: z.string() }),
  z.object({
    type: z.literal('error'),
    error: z.object({ code: z.string(), message: z.string(), next: z.string().exactOptional() }),
  }),
])
