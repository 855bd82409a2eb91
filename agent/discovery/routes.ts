/**
 * Discovery over plain HTTP, for any program of this machine: xDS v3 over REST as Envoy polls it, the older registration service that Envoy had
 * first, and lists of targets for Prometheus (http_sd).
 *
 * To ask for endpoints is to have them listened on, so a web page elsewhere may not: browsers say when one asks (Sec-Fetch-Site).
 *
 * Answers are 200 with what there is now, or 304 for xDS when the client has it; Envoy takes everything else for a failure of the connection.
 */
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import type { Directory, Endpoint, Service } from './directory.ts'
import type { Json } from './protobuf.ts'
import { snapshotOf } from './resources.ts'
import { RESOURCE_KINDS, type ResourceKind, TYPE_URLS } from './xds-schema.ts'

/** Envoy says with each question which extensions it has: some 100 KB. */
const REQUEST_BYTES_MAX = 1024 * 1024
const NAMES_MAX = 2_048
const NAME_LENGTH_MAX = 253
/** Prometheus takes it as how labels begin that are for relabelling only. */
const META = '__meta_undernet'

export function registerDiscoveryRoutes(app: FastifyInstance, directory: Directory): void {
  for (const kind of RESOURCE_KINDS) {
    app.post(
      `/v3/discovery::${kind}`,
      { bodyLimit: REQUEST_BYTES_MAX, onRequest: refusePages },
      async ({ body }, reply) => answerXds(kind, body, reply, directory),
    )
  }
  app.get<{ Params: { service: string } }>(
    '/v1/registration/:service',
    { onRequest: refusePages },
    async ({ params: { service } }, reply) => {
      const found = isName(service) ? directory.find(service) : undefined
      return reply.send({ hosts: found === undefined ? [] : hostsOf(await directory.endpointsOf(found)) })
    },
  )
  app.get<{ Querystring: { service?: unknown } }>(
    '/v1/http_sd',
    { onRequest: refusePages },
    async ({ query: { service } }, reply) => {
      const named = isName(service) ? directory.find(service) : undefined
      const wanted = service === undefined ? directory.list() : named === undefined ? [] : [named]
      const targets: Json[] = []
      for (const found of wanted) targets.push(...targetsOf(found, await directory.endpointsOf(found)))
      return reply.send(targets)
    },
  )
}

async function refusePages({ headers }: FastifyRequest, reply: FastifyReply): Promise<void> {
  const site = headers['sec-fetch-site']
  if (site === undefined || site === 'none' || site === 'same-origin') return
  await reply.code(403).type('text/plain').send('Services are not told to web pages.\n')
}

async function answerXds(
  kind: ResourceKind,
  body: unknown,
  reply: FastifyReply,
  directory: Directory,
): Promise<FastifyReply> {
  const asked = readRequest(body, kind)
  if (typeof asked === 'string') return reply.code(400).type('text/plain').send(`${asked}\n`)
  const { version, resources } = await snapshotOf(
    kind,
    asked.names.length === 0 ? 'all' : asked.names,
    'rest',
    directory,
  )
  if (asked.version === version) return reply.code(304).send()
  return reply.send({ version_info: version, type_url: TYPE_URLS[kind], resources })
}

/** A DiscoveryRequest in JSON, with its names in either style; what is wrong with it as a sentence. */
export function readRequest(body: unknown, kind: ResourceKind): { names: string[]; version: string } | string {
  if (typeof body !== 'object' || body === null || Array.isArray(body)) return 'a DiscoveryRequest is an object of JSON'
  const given = body as Json
  const names = given.resource_names ?? given.resourceNames ?? []
  const version = given.version_info ?? given.versionInfo ?? ''
  const url = given.type_url ?? given.typeUrl ?? TYPE_URLS[kind]
  if (!Array.isArray(names) || names.length > NAMES_MAX || !names.every(isName))
    return `resource_names are at most ${NAMES_MAX} names`
  if (typeof version !== 'string') return 'version_info is a string'
  if (url !== TYPE_URLS[kind]) return `here are resources of the type ${TYPE_URLS[kind]}`
  return { names: [...new Set(names)].sort(), version }
}

function isName(name: unknown): name is string {
  return typeof name === 'string' && name.length <= NAME_LENGTH_MAX
}

/** As Envoy's first discovery service had it (SDS v1). */
function hostsOf(endpoints: readonly Endpoint[]): Json[] {
  return endpoints.map(({ instance, address }) => ({
    ip_address: address,
    port: instance.port,
    tags: {
      ...(instance.zone !== undefined && { az: instance.zone }),
      canary: instance.labels.canary === 'true',
      // From 1 to 100 there.
      load_balancing_weight: Math.min(100, Math.max(1, instance.weight)),
    },
  }))
}

/** One group an instance, so that each has labels of its own. */
function targetsOf({ name, network, service }: Service, endpoints: readonly Endpoint[]): Json[] {
  return endpoints.map(({ instance, address }) => ({
    targets: [`${address}:${instance.port}`],
    labels: {
      [`${META}_name`]: name,
      [`${META}_network`]: network,
      [`${META}_service`]: service,
      [`${META}_node`]: instance.node,
      ...(instance.zone !== undefined && { [`${META}_zone`]: instance.zone }),
      ...Object.fromEntries(
        Object.entries(instance.labels).map(([key, value]) => [
          `${META}_label_${key.replace(/[^0-9A-Za-z_]/g, '_')}`,
          value,
        ]),
      ),
    },
  }))
}
