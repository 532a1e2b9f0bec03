// SPDX-License-Identifier: GPL-2.0-only
/* No program: a pointer to each shared type, so that clang writes all of them to BTF, from which
 * the agent's layouts are generated.
 */
#include "include/cgroup.h"
#include "include/disk.h"
#include "include/failfast.h"
#include "include/oom.h"
#include "include/pool.h"
#include "include/ports.h"
#include "include/ratelimit.h"
#include "include/tcp.h"

enum histogram *histogram;
enum tcp_role *tcp_role;
enum tcp_failure *tcp_failure;
enum tcp_closer *tcp_closer;
enum tcp_retransmit *tcp_retransmit;
enum tcp_reset *tcp_reset;
enum tcp_cgroup *tcp_cgroup;
enum tcp_loss *tcp_loss;
enum cgroup_change *cgroup_change;
enum cgroup_limit *cgroup_limit;
enum oom_limit *oom_limit;
struct tcp_key *tcp_key;
struct tcp_counts *tcp_counts;
struct cgroup_event *cgroup_event;
enum disk_operation *disk_operation;
enum disk_loss *disk_loss;
enum disk_cgroup *disk_cgroup;
struct disk_key *disk_key;
struct disk_counts *disk_counts;
struct disk_request *disk_request;
struct oom_event *oom_event;
struct ports_key *ports_key;
struct ports_held *ports_held;
struct ports_waiting *ports_waiting;
struct ports_namespace *ports_namespace;
struct ports_listener_key *ports_listener_key;
struct ports_listener *ports_listener;
enum ratelimit *ratelimit;
enum ratelimit_mode *ratelimit_mode;
enum ratelimit_verdict *ratelimit_verdict;
enum ratelimit_reason *ratelimit_reason;
enum ratelimit_note *ratelimit_note;
enum ratelimit_dimension *ratelimit_dimension;
enum ratelimit_width *ratelimit_width;
enum ratelimit_policy_number *ratelimit_policy_number;
enum ratelimit_listed *ratelimit_listed;
struct ratelimit_limit *ratelimit_limit;
struct ratelimit_policy *ratelimit_policy;
struct ratelimit_ports *ratelimit_ports;
struct ratelimit_state *ratelimit_state;
struct ratelimit_key *ratelimit_key;
struct ratelimit_source *ratelimit_source;
struct ratelimit_prefix *ratelimit_prefix;
struct ratelimit_ban *ratelimit_ban;
struct ratelimit_count *ratelimit_count;
struct ratelimit_simulation *ratelimit_simulation;
enum pool *pool;
enum pool_evidence *pool_evidence;
enum pool_class *pool_class;
enum pool_loss *pool_loss;
struct pool_key *pool_key;
struct pool_endpoint *pool_endpoint;
struct pool_counts *pool_counts;
struct pool_event *pool_event;
struct http_key *http_key;
struct http_counts *http_counts;
struct failfast_entry *failfast_entry;
struct failfast_service *failfast_service;
