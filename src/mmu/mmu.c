/* SPDX-License-Identifier: MIT */
#include "mmu/mmu.h"

#include <errno.h>
#include <string.h>

#include "base/err.h"

void gmem_mmu_init(struct gmem_mmu *mmu)
{
	*mmu = (struct gmem_mmu){ .no_tables = false };
	gmem_rwlock_init(&mmu->lock, GMEM_LOCK_MMU);
	gmem_table_pool_init(&mmu->pool);
	gmem_epoch_init(&mmu->epoch);
	gmem_epoch_init(&mmu->maps);
	pthread_mutex_init(&mmu->m, NULL);
	pthread_mutex_init(&mmu->clearing, NULL);
}

void gmem_mmu_destroy(struct gmem_mmu *mmu)
{
	struct gmem_mmu_external *x = atomic_load(&mmu->external);

	if (x)
		x->ops->free(x);
	pthread_mutex_destroy(&mmu->clearing);
	pthread_mutex_destroy(&mmu->m);
	gmem_epoch_destroy(&mmu->maps);
	gmem_epoch_destroy(&mmu->epoch);
	gmem_table_pool_destroy(&mmu->pool);
	gmem_rwlock_destroy(&mmu->lock);
}

void gmem_mmu_add_vcpu(struct gmem_mmu *mmu, struct gmem_vcpu *vcpu)
{
	*vcpu = (struct gmem_vcpu){ .mmu = mmu };
	gmem_epoch_add(&mmu->epoch, &vcpu->reader);
	gmem_epoch_add(&mmu->maps, &vcpu->mapper);
	pthread_mutex_lock(&mmu->m);
	vcpu->next = mmu->vcpus;
	mmu->vcpus = vcpu;
	pthread_mutex_unlock(&mmu->m);
}

int gmem_mmu_set_external(struct gmem_mmu *mmu, struct gmem_mmu_external *external)
{
	if (atomic_load(&mmu->external))
		return gmem_err(-EEXIST, "this VM is being launched already");
	gmem_mmu_invalidate_begin(mmu, 0, 1ull << GMEM_GFN_BITS, GMEM_SIDE_PRIVATE);
	/* In between nobody maps, so nobody looks. */
	atomic_store(&mmu->external, external);
	gmem_mmu_invalidate_end(mmu);
	return 0;
}

static void add_counts(uint64_t *sum, const struct gmem_vcpu *vcpu)
{
	for (unsigned int i = 0; i < GMEM_MMU_COUNTERS; i++)
		sum[i] += atomic_load_explicit(&vcpu->counts[i], memory_order_relaxed);
}

void gmem_mmu_del_vcpu(struct gmem_vcpu *vcpu)
{
	struct gmem_mmu *mmu = vcpu->mmu;
	struct gmem_vcpu **at = &mmu->vcpus;

	pthread_mutex_lock(&mmu->m);
	while (*at != vcpu)
		at = &(*at)->next;
	*at = vcpu->next;
	add_counts(mmu->gone, vcpu);
	pthread_mutex_unlock(&mmu->m);
	gmem_epoch_del(&mmu->maps, &vcpu->mapper);
	gmem_epoch_del(&mmu->epoch, &vcpu->reader);
	gmem_table_flush(&mmu->pool, &vcpu->cache);
}

void gmem_mmu_stats(struct gmem_mmu *mmu, struct gmem_vm_stats *stats)
{
	uint64_t sum[GMEM_MMU_COUNTERS];

	pthread_mutex_lock(&mmu->m);
	memcpy(sum, mmu->gone, sizeof(sum));
	for (const struct gmem_vcpu *vcpu = mmu->vcpus; vcpu; vcpu = vcpu->next)
		add_counts(sum, vcpu);
	pthread_mutex_unlock(&mmu->m);
	stats->private_maps = sum[GMEM_MMU_PRIVATE_MAPS];
	stats->faults = sum[GMEM_MMU_FAULTS];
	stats->lookups = sum[GMEM_MMU_LOOKUPS];
	stats->retries = sum[GMEM_MMU_RETRIES];
	stats->table_bytes = gmem_mmu_table_bytes(mmu);
}

uint64_t gmem_mmu_table_bytes(struct gmem_mmu *mmu)
{
	uint64_t used;

	pthread_mutex_lock(&mmu->pool.m);
	used = mmu->pool.used;
	pthread_mutex_unlock(&mmu->pool.m);
	return used << GMEM_PAGE_SHIFT;
}

int gmem_mmu_reload(struct gmem_vcpu *vcpu)
{
	struct gmem_mmu *mmu = vcpu->mmu;
	gmem_pte *root, *none = NULL;

	if (vcpu->root)
		return 0;
	if (!atomic_load(&mmu->root)) {
		root = gmem_table_new(&mmu->pool);
		if (!root)
			return gmem_err_sys(-ENOMEM, "second-stage tables");
		if (!atomic_compare_exchange_strong(&mmu->root, &none, root))
			gmem_table_free_tree(&mmu->pool, root, 1);
	}
	vcpu->root = atomic_load(&mmu->root);
	return 0;
}

bool gmem_vcpu_cancelled(struct gmem_vcpu *vcpu)
{
	return atomic_load_explicit(&vcpu->cancel, memory_order_relaxed) && atomic_exchange(&vcpu->cancel, false);
}
