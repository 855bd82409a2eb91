/** The endpoints about names of services as addresses of this machine: the part of the table in routes.ts that NamesApi does. */
import { z } from 'zod'
import type { DnsConfView, NameList } from './names-contract.ts'
import { type Route, route } from './route.ts'

const nameList: z.ZodType<NameList> = z.object({
  range: z.string().nullable(),
  names: z.array(
    z.object({ name: z.string(), address: z.string(), ports: z.array(z.int()), connections: z.int().nonnegative() }),
  ),
})
const dnsConf: z.ZodType<DnsConfView> = z.object({
  address: z.string(),
  domains: z.array(z.string()),
  resolvers: z.array(
    z.object({
      resolver: z.enum(['systemd-resolved', 'dnsmasq']),
      file: z.string(),
      lines: z.array(z.string()),
      restart: z.string(),
    }),
  ),
})

export const namesRoutes: readonly Route[] = [
  route({
    method: 'GET',
    path: 'names',
    summary: 'Names of services that programs of this machine use, with their loopback addresses',
    takes: 'query',
    input: z.object({}),
    answers: 'json',
    reply: nameList,
    handle: ({ names }) => names.list(),
  }),
  route({
    method: 'GET',
    path: 'dns-conf',
    summary: 'What the resolver of this machine needs to find names of services',
    takes: 'query',
    input: z.object({}),
    answers: 'json',
    reply: dnsConf,
    handle: ({ names }) => names.dnsConf(),
  }),
]
