// The server's codes in Chinese
export const reasons = {
	seal_missing: "尚未封存", seal_invalid: "封存无效", seal_changed: "封存已变",
	signature_missing: "没有签名", signature_invalid: "签名无效", signer_not_allowed: "签名者不允许", policy_invalid: "签名策略无效",
	file_missing: "缺少文件", file_not_regular: "不是普通文件",
	size_mismatch: "大小不符", hash_mismatch: "内容不符", header_invalid: "文件头无效", version_mismatch: "版本不符", config_invalid: "配置无效",
	class_not_allowed: "组件不允许", weights_mismatch: "权重不符", bad_image: "图片异常", golden_invalid: "样图无效", golden_mismatch: "样图不符", set_aside: "多次崩溃", withdrawn: "已撤下", insufficient_memory: "内存不足",
	out_of_memory: "内存不足", io_error: "读取出错", stalled: "没有进展", device_error: "设备出错", internal_error: "内部错误",
	invalid_value: "值无效", not_found: "未找到", model_not_found: "没有此模型", missing: "链接不存在", not_a_link: "不是链接", unsettled: "变化过快", several_shares: "分流链接过多", not_a_share: "不是有效的分流链接", outside: "在目录之外", dangling: "版本不存在", loop: "循环链接",
	not_a_directory: "不是目录", unreadable: "无法读取", unauthorized: "需要令牌",
	too_many_guesses: "尝试过多", decoder_busy: "解码繁忙", unreachable: "没有响应",
};

// Lines "key = English = Chinese"; a key ".part" goes on from the first part of the one before it
export function table(text) {
	let last;
	return Object.fromEntries(text.split("\n").filter(Boolean).map((line) => {
		const [key, ...texts] = line.split(" = ");
		last = key.replace(/^(?=\.)/, last).split(".", 1)[0];
		return [key.replace(/^(?=\.)/, last), texts];
	}));
}

// The strings of the page. "1 step|{count} steps" is for one and for more, by `count`
export default table(`
cancel = Cancel = 取消
close = Close = 关闭
dismiss = Dismiss = 移除
share = Copy link = 复制链接
.title = Copy a link with these settings = 复制带有当前设置的链接
versions = Versions = 版本
keys = Keys = 快捷键

field.prompt = Prompt = 提示词
.negative_prompt = Negative prompt = 反向提示词
.width = Width = 宽度
.height = Height = 高度
.steps = Steps = 步数
.n = Images = 张数
.seed = Seed = 种子
.guidance_scale = Guidance = 引导系数
.format = Format = 格式
.quality = Quality = 质量
.strength = Strength = 重绘强度
.mask_blur = Mask blur = 蒙版模糊
source.choose = Start from a picture… = 从图片开始…
.title = Change a picture, or a part of it; drop or paste it, too = 修改图片或其中一部分；也可拖放或粘贴
prompt.placeholder = Describe the picture = 描述想要的画面
advanced = Advanced = 高级设置
size = Size = 尺寸
.flip = Swap width and height = 交换宽度和高度
.half = Half the size = 尺寸减半
.twice = Twice the size = 尺寸加倍
seed.random = random = 随机
.lock = Keep this seed for the next pictures = 锁定种子，后续图片沿用
.dice = New random seed = 换一个随机种子
.next = Next seed (+1) = 下一个种子（+1）
generate = Generate = 生成
used.all = All settings taken over = 已填入全部设置
.seed = Seed taken over = 已填入种子

error.prompt = Describe the picture first. = 请先描述画面。
.number = A number from {least} to {most}, not {found}. = 应为 {least} 到 {most} 之间的数字，而不是 {found}。
.whole = A whole number from {least} to {most}, not {found}. = 应为 {least} 到 {most} 之间的整数，而不是 {found}。
.multiple = A multiple of {step}: {below} or {above}. = 应为 {step} 的倍数：{below} 或 {above}。
.seed = A whole number from 0 to 2⁶³ − 1, or empty for a random one. = 应为 0 到 2⁶³ − 1 的整数；留空则随机。
.code.unreachable = The server does not answer. Generate works again as soon as it does. = 服务器没有响应。恢复后即可生成。
.code.model_not_loaded = Model not loaded. Generate works again as soon as it is. = 模型未加载。加载后即可生成。
.code.queue_full = The queue is full. Try again in {seconds} s. = 队列已满，请在 {seconds} 秒后重试。
.code.shutting_down = The server is stopping. Try again in a moment. = 服务器正在停止，请稍后重试。
.code.restarted = Lost when the server restarted. = 服务器重启时丢失。
.code.out_of_memory = The device's memory is not enough for this. Try a smaller size. ({message}) = 设备内存不足，请减小尺寸。（{message}）
.code.timeout = This took longer than the server allows. ({message}) = 超过了服务器允许的时间。（{message}）
.code.generation_failed = The picture could not be made. ({message}) = 图片生成失败。（{message}）

obstacle.unreachable = no connection = 未连接
.model_not_loaded = model not loaded = 模型未加载

queue = Queue = 队列
.count = Queue · {count} = 队列 · {count}
.empty = Each press of Generate adds a job here. = 每按一次“生成”，就会在这里添加一个任务。
.status = Queue: {running} running, {waiting} waiting = 队列：{running} 个运行中，{waiting} 个等待
.idle = Queue: empty = 队列：空
cancel.all = Cancel all = 全部取消
.job = Cancel: {prompt} = 取消：{prompt}
dismiss.job = Dismiss: {prompt} = 移除：{prompt}
retry = Try again = 重试
.job = Try again: {prompt} = 重试：{prompt}
job.added = Added to the queue, {count} before it = 已加入队列，前面有 {count} 个
.cancelled = Cancelled = 已取消
.next = next = 下一个
.before = {count} before it = 前面有 {count} 个
.picture = picture {number} of {count} = 第 {number} 张，共 {count} 张
.prompt = reading the prompt = 读取提示词
.step = step {step} of {steps} = 第 {step} 步，共 {steps} 步
.decoding = finishing = 即将完成
.left = {time} left = 剩余 {time}
.done = The picture is done: version {version}, seed {seed} = 图片已完成：版本 {version}，种子 {seed}
notify = Notify me when a long queue is done = 长队列完成时通知我
.on = Notifications are on = 通知已开启
.off = Notifications are off here, or blocked by the browser = 通知已关闭，或被浏览器禁止
.done = The queue is done: 1 picture|The queue is done: {count} pictures = 队列已完成：{count} 张图片
.failed = , {failed} failed = ，{failed} 个失败

progress = Progress = 进度
result = Result: {prompt} = 结果：{prompt}
.forming = Result, still forming = 结果，正在生成
stage.empty = Describe a picture and press Generate. = 描述一个画面，然后按“生成”。
caption.seed = seed {seed} = 种子 {seed}
.steps = 1 step|{count} steps = {count} 步
use.all = Use settings = 使用全部设置
.seed = Use seed = 使用种子
.picture = Use this picture = 使用此图片

model = Model: {name} = 模型：{name}
.since = since {time} = 自 {time} 起
.unloaded = not loaded = 未加载
.none = none yet = 尚无
deploy.loading = {version}: loading = {version}：加载中
.verifying = {version}: verifying {percent} = {version}：校验中 {percent}
.warming = {version}: warming up = {version}：预热中
.rejected = {version} rejected: {reason} = {version} 被拒绝：{reason}
.fault = Link {alias}: {message} = 链接 {alias}：{message}
history.fault = Pictures are not kept: {message} = 图片未能保存：{message}
connection.connecting = Connecting… = 正在连接…
.lost = The server does not answer. Connecting again… = 服务器没有响应，正在重新连接…

token.title = Token = 令牌
.text = The server asks for its token, once in this browser. = 服务器需要令牌，每个浏览器只需输入一次。
.ok = Continue = 继续
.wrong = This is not the server's token. = 令牌不正确。

keys.cancel = Cancel the job that runs = 取消正在运行的任务
.prompt = In the prompt: the prompts used before = 在提示词中：使用过的提示词
.walk = Walk through the pictures = 浏览图片
.details = On a picture: all its details = 选中图片时：全部信息
.search = Search the pictures = 搜索图片
.focus = Go to the prompt = 转到提示词
.zoom = Zoom, in details and comparison = 缩放（详情和对比中）
.help = These keys = 显示快捷键

time.seconds = {seconds} s = {seconds} 秒
.minutes = {minutes} min = {minutes} 分钟
`);
